"""Noise of a deployment cannot be reproduced from the seed, which every instruction carries."""

import chex
import numpy as np
import pytest

import jaxfed
from jaxfed.messages import compression, privacy
from tests.jaxfed.flower.test_flower import CLIENTS, Deployed
from tests.support.jaxfed import problems

pytestmark = pytest.mark.peers("flwr")
SAMPLER = jaxfed.CoinFlips(0.5)
CENTRAL = privacy.Central(0.5, 2.0, SAMPLER, len(CLIENTS), 1e-3)
LOCAL = privacy.Local(0.5, 2.0, 1e-3)
CLIP = privacy.clip(0.5)
OPTIONS = {"batching": jaxfed.Steps(1, 4)}


def moved(server, other):
    return np.abs(problems.flat(server.params) - problems.flat(other.params))


def test_a_server_cannot_reproduce_a_clients_noise(tmp_path):
    """The noise is not derived from the seed, and differs in the same round of another run."""
    algorithm = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), CLIP, privacy.local_noise(LOCAL))
    first = Deployed(tmp_path, algorithm)
    deployed, _ = first.serve(rounds=1, sampler=jaxfed.FixedSize(3), **OPTIONS)
    seeded, _ = first.simulate(rounds=1, sampler=jaxfed.FixedSize(3), **OPTIONS)
    assert np.sqrt(np.mean(moved(deployed, seeded) ** 2)) > 0.3, "deviation z·C·√(2/3) = 0.8"
    second, _ = first.serve(rounds=1, sampler=jaxfed.FixedSize(3), **OPTIONS)
    assert np.sqrt(np.mean(moved(deployed, second) ** 2)) > 0.3
    again, _ = first.simulate(rounds=1, sampler=jaxfed.FixedSize(3), **OPTIONS)
    chex.assert_trees_all_equal(seeded, again)


def test_a_client_cannot_reproduce_the_servers_noise_or_cohorts(tmp_path):
    """Rounding stays that of the seed: it hides nothing."""
    drawn = []

    def look(number, client, reply):
        drawn.append((number, client))
        return reply

    algorithm = jaxfed.uplink(
        jaxfed.fedavg(problems.loss_fn), compression.quantise(8), CLIP, aggregate=privacy.central_noise(CENTRAL)
    )
    deployed = Deployed(tmp_path, algorithm, trouble=look)
    after = []
    deployed.serve(rounds=12, sampler=SAMPLER, callbacks=[lambda server, info: after.append(server)], **OPTIONS)
    cohorts = [SAMPLER.draw(31, number, len(CLIENTS)) for number in range(12)]
    assert drawn != [(number, int(client)) for number, ids in enumerate(cohorts) for client in ids if client >= 0]
    seeded, _ = deployed.simulate(rounds=1, sampler=SAMPLER, **OPTIONS)
    assert np.sqrt(np.mean(moved(after[0], seeded) ** 2)) > 0.3, "deviation √2·z·C/1.5 = 0.9"


def test_a_deployment_with_other_cohorts_than_the_noise_is_refused(tmp_path):
    algorithm = jaxfed.uplink(jaxfed.fedavg(problems.loss_fn), CLIP, aggregate=privacy.central_noise(CENTRAL))
    deployed = Deployed(tmp_path, algorithm)
    with pytest.raises(ValueError, match="expected the sampling that central_noise"):
        deployed.serve(rounds=1, sampler=jaxfed.FixedSize(2), **OPTIONS)
    with pytest.raises(ValueError, match="equal weights"):
        deployed.serve(rounds=1, sampler=jaxfed.CoinFlips(0.5, weights="samples"), **OPTIONS)
