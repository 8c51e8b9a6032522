"""A store of one's own: the rows of all clients in a dictionary on the host."""

import dataclasses

import chex
import jax
import numpy as np

import jaxfed
from jaxfed.rows import Population, StagedEngine
from tests.support.jaxfed import problems


class DictRows(Population):
    """Client → row; a client that never took part has the first row."""

    def __init__(self, first):
        self.first, self.rows = jax.tree.map(np.asarray, first), {}

    def read(self, ids):
        rows = [self.rows.get(client, self.first) for client in ids.tolist()]
        return stack(rows)

    def write(self, ids, rows):
        for slot, client in enumerate(ids.tolist()):
            if client >= 0:
                self.rows[client] = jax.tree.map(lambda leaf, slot=slot: np.array(leaf[slot]), rows)

    def snapshot(self, step, oldest):
        ids = np.array(sorted(self.rows))
        return {"ids": ids, "rows": self.read(ids)}

    def describe(self):
        return {"count": len(self.rows)}

    def like(self, facts):
        return {"ids": np.zeros(facts["count"], int), "rows": stack([self.first] * facts["count"])}

    def restore(self, snapshot):
        self.rows = {}
        self.write(snapshot["ids"], snapshot["rows"])


def stack(rows):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


@dataclasses.dataclass(frozen=True)
class DictStore:
    def engine(self, start):
        return StagedEngine(lambda: DictRows(start.row), start)


def simulate(rounds, store, checkpoint=None):
    problem = problems.make_problem(21, np.float32)
    algorithm = jaxfed.fedspeed(problems.loss_fn)
    return jaxfed.simulate(
        algorithm,
        algorithm.init(problem.params, problems.CLIENTS),
        jaxfed.data.client_data(problem.clients),
        rounds=rounds,
        batching=jaxfed.Steps(2, 4),
        sampler=jaxfed.FixedSize(3),
        layout=jaxfed.Layout(store=store),
        report=jaxfed.Report(progress=False, keep_state=True),
        checkpoint=checkpoint,
    )


def test_a_store_of_ones_own_equals_the_others_and_resumes_bit_for_bit(tmp_path):
    on_mesh, _ = simulate(6, jaxfed.DeviceStore())  # another compiled program
    expected, history = simulate(6, jaxfed.HostStore())
    server, found = simulate(6, DictStore())
    chex.assert_trees_all_equal(server, expected)
    chex.assert_trees_all_close(server, on_mesh, atol=1e-7)
    assert found.rounds == history.rounds
    simulate(3, DictStore(), jaxfed.Checkpointing(tmp_path, every=2))
    resumed, last = simulate(6, DictStore(), tmp_path)
    chex.assert_trees_all_equal(resumed, expected)
    assert last.state.rows["ids"].tolist() == sorted(set(last.state.rows["ids"].tolist()))
