"""Recorded losses and gradients of the original trainers of EAGLE-1, EAGLE-3, Medusa and Hydra, replayed.

Sizes, settings and names come from the files (``tests.support.jaxspec.draft_records``).
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.loading._draft_rules import leaves_of, rule_for
from jaxspec.models.config import Rotary
from jaxspec.training._trained import trained_part
from jaxspec.training._unroll import fused, lesson, shifted, unroll
from jaxspec.training.eagle3 import SPECULATORS, Recipe, eagle3_loss
from jaxspec.training.heads import eagle_loss, hydra_loss, medusa_loss
from tests.support.jaxspec.draft_records import FOLDER, close, draft, record, target

#: From names in the programs' modules to those of the loader's rules, in this order.
NAMES = (
    (r"^midlayer\.", "layers.0."),
    (r"^medusa_head\.(\d+)\.\d+\.linear\.", r"blocks.\1.layers.0."),
    (r"^medusa_head\.(\d+)\.\d+\.weight$", r"lm_heads.\1.weight"),
    (r"^(hydra_mlp\.\d+)\.1\.", r"\1.0."),
    (r"^(hydra_mlp\.\d+)\.3\.", r"\1.1."),
    (r"^(hydra_lm_head\.\d+)\.1\.", r"\1."),
)


def prefixes(name, suffix):
    """What stands before ``suffix`` in the names of a record; the suffix itself if there is no record."""
    path = FOLDER / f"{name}.npz"
    keys = np.load(path).files if path.is_file() else [f"{suffix}{suffix}"]
    return sorted(key.removesuffix(suffix) for key in keys if key.endswith(suffix))


def with_theta(made, theta):
    network = made.drafter.network
    attention = replace(network.config.attention, rotary=Rotary(theta))
    network = replace(network, config=replace(network.config, attention=attention))
    return made._replace(drafter=replace(made.drafter, network=network))


def of_text(found):
    """A batch of recorded texts, padded with zeros, and the tokens that count."""
    present = found["attention_mask"] > 0
    counted = found["loss_mask"] > 0 if "loss_mask" in found else found["labels"] >= 0
    return {"tokens": jnp.where(present, found["input_ids"], -1), "mask": jnp.asarray(counted)}


def value(loss, made, batch, frozen=None):
    own, _ = trained_part(made, frozen)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(own, batch, jax.random.key(0))


def check_gradients(made, gradients, found, prefix):
    """Compare every recorded gradient, in our layout, and the norms of all."""
    recorded = {}
    for number, name in enumerate(found[f"{prefix}.grad_names"]):
        own = str(name)
        for pattern, to in NAMES:
            own = re.sub(pattern, to, own)
        recorded[own] = number, str(name)
    network, left = made.drafter.network, set(recorded)
    leaves = {jax.tree_util.keystr(p, simple=True, separator="."): g for p, g in jax.tree.leaves_with_path(gradients)}
    for leaf, gradient in leaves.items():
        names = rule_for(network, leaf).names
        assert set(names) <= left, f"{leaf} has no recorded gradient"
        left -= set(names)
        norms = found[f"{prefix}.grad_norms"][[recorded[name][0] for name in names]]
        np.testing.assert_allclose(np.linalg.norm(gradient), np.linalg.norm(norms), rtol=1e-4, atol=1e-5)
        keys = [f"{prefix}.grad.{recorded[name][1]}" for name in names]
        if keys[0] in found:
            close(gradient, rule_for(network, leaf).join([found[key] for key in keys], network.config))
    assert not left, f"gradients that we do not have: {left}"
    assert set(leaves) <= set(leaves_of(network))


@pytest.mark.parametrize("name", prefixes("train_eagle1", ".predict"))
def test_eagle(name):
    found, made = record("train_eagle1"), draft(name)
    shown = {key.removeprefix("batch."): part for key, part in found.items() if key.startswith("batch.")}
    texts = record("train_eagle3_eagle")  # the same texts, not yet shifted
    np.testing.assert_array_equal(shown["input_ids"][:, :-1], texts["input_ids"][:, 1:])
    batch = of_text(texts)
    (loss, aux), gradients = value(eagle_loss(made, target()), made, batch)
    close(aux["regression"], found[f"{name}.vloss"])
    close(aux["classification"], found[f"{name}.ploss"])
    close(loss, found[f"{name}.loss"])
    check_gradients(made, gradients, found, name)
    taught, network = lesson(target(), made.drafter.reads, batch), made.drafter.network
    (guess,) = unroll(network, made.params, fused(network, made.params, taught), taught, 1)
    rows = np.asarray(shifted(taught.present, 1))
    close(np.moveaxis(guess, 0, -1)[rows], found[f"{name}.predict"][rows])


@pytest.mark.parametrize("name", prefixes("train_eagle3_eagle", ".ploss"))
def test_eagle3(name):
    found = record("train_eagle3_eagle")
    made = with_theta(draft("eagle3_raw"), float(name.rpartition("theta")[2]))
    recipe, batch = Recipe(steps=len(found[f"{name}.ploss"])), of_text(found)
    (loss, aux), gradients = value(eagle3_loss(made, target(), recipe), made, batch)
    close(loss, found[f"{name}.total"])
    decayed = found[f"{name}.ploss"] * recipe.decay ** np.arange(recipe.steps)
    close(np.stack(list(aux.values())), decayed)
    check_gradients(made, gradients, found, name)
    check_unrolled(made, batch, found[f"{name}.logits"])


def check_unrolled(made, batch, recorded):
    """Logits [S, B, T, V_d], where the token that they are read with is there."""
    taught, network = lesson(target(), made.drafter.reads, batch), made.drafter.network
    inputs = fused(network, made.params, taught)
    for step, x in enumerate(unroll(network, made.params, inputs, taught, len(recorded))):
        rows = np.asarray(shifted(taught.present, step + 1))[:, : recorded.shape[2]]
        logits = np.moveaxis(network.own_logits(made.params, x, 0), 0, -1)[:, : recorded.shape[2]]
        close(logits[rows], recorded[step][rows])


def of_documents(found, kind, parts):
    """The batch of speculators' record: its tokens, target and mask are one place ahead of its features."""
    given = {key.removeprefix(f"{kind}."): part for key, part in found.items() if key.startswith(f"{kind}.")}
    ahead = lambda rows: jnp.pad(jnp.asarray(rows), [(0, 0), (1, 0)] + [(0, 0)] * (rows.ndim - 2))  # noqa: E731
    level = lambda rows, filling=0: jnp.pad(  # noqa: E731
        jnp.asarray(rows), [(0, 0), (0, 1)] + [(0, 0)] * (rows.ndim - 2), constant_values=filling
    )
    taps = [level(part) for part in np.split(given["hidden_states"], parts, axis=-1)]
    return {
        "tokens": ahead(given["input_ids"]).astype(jnp.int32),
        "mask": ahead(given["loss_mask"]),
        "hidden": (*taps, ahead(given["verifier_last_hidden_states"])),
        "documents": level(given["document_ids"], -1),
    }


@pytest.mark.parametrize("name", prefixes("train_eagle3_speculators", ".loss_per_step"))
def test_eagle3_of_speculators(name):
    """The name is kind[.head].divergence.decay."""
    found = record("train_eagle3_speculators")
    kind, head, divergence, decay = re.fullmatch(r"(\w+?)\.(head31\.)?(.+)\.decay([0-9.]+)", name).groups()
    made = draft("eagle3_spec_31" if head else "eagle3_speculators")
    recipe = replace(
        SPECULATORS,
        steps=len(found[f"{name}.loss_per_step"]),
        decay=float(decay),
        divergence=tuple((part, float(by or 1)) for part, by in re.findall(r"([a-z_]+)([0-9.]*)", divergence)),
    )
    batch = of_documents(found, kind, len(made.drafter.reads.taps))
    (loss, aux), gradients = value(eagle3_loss(made, target(), recipe), made, batch, recipe.frozen)
    close(loss, found[f"{name}.loss"])
    close(np.stack(list(aux.values())), found[f"{name}.loss_per_step"])
    check_gradients(made, gradients, found, name)


@pytest.mark.parametrize("kind", prefixes("train_eagle3_speculators", ".features"))
def test_steps_of_speculators(kind):
    found, made = record("train_eagle3_speculators"), draft("eagle3_speculators")
    check_unrolled(made, of_documents(found, kind, len(made.drafter.reads.taps)), found[f"{kind}.logits"][:, None])


@pytest.mark.parametrize("text", prefixes("eagle3_spec_sliding", ".ttt_logits"))
def test_steps_with_a_sliding_window(text):
    """The window counts from the row; rows of later steps are always seen."""
    found, made = record("eagle3_spec_sliding"), draft("eagle3_spec_sliding")
    check_unrolled(made, {"tokens": jnp.asarray(found[f"{text}.tokens"])[None]}, found[f"{text}.ttt_logits"][:, None])


@pytest.mark.parametrize("name", prefixes("train_medusa", ".loss_per_head"))
@pytest.mark.parametrize(("part", "decay"), [("lambda1", 1.0), ("decay0.8", 0.8)])
def test_medusa(name, part, decay):
    found, made = record("train_medusa"), draft(name)
    (loss, aux), gradients = value(medusa_loss(made, target(), decay=decay), made, of_text(found))
    close(np.stack(list(aux.values())), found[f"{name}.loss_per_head"])
    close(loss, found[f"{name}.total_{part}"])
    check_gradients(made, gradients, found, f"{name}.{part}")


@pytest.mark.parametrize("name", prefixes("train_hydra", ".teacher_loss"))
@pytest.mark.parametrize(
    ("part", "weights"),
    [("teacher", {}), ("lm+teacher+recon", {"labels": 0.3, "reconstruction": 0.5})],
)
def test_hydra(name, part, weights):
    found, made = record("train_hydra"), draft(name)
    (loss, aux), gradients = value(hydra_loss(made, target(), **weights), made, of_text(found))
    parts = {"teacher": 1.0, "labels": 0.0, "reconstruction": 0.0} | weights
    recorded = {"teacher": "teacher_loss", "labels": "lm_loss", "reconstruction": "reconstruct_loss"}
    expected = sum(weight * found[f"{name}.{recorded[key]}"] for key, weight in parts.items())
    close(np.stack(list(aux.values())), expected)
    close(loss, found[f"{name}.{part}.total"])
    check_gradients(made, gradients, found, f"{name}.{part}")
