"""Nothing is compiled twice: not for a second call or other prompts of like length, not by a method built anew."""

import jax
import pytest

import jaxspec
from tests.support.jaxspec import models

BUILDERS = {
    "autoregressive": lambda: jaxspec.autoregressive(models.target()),
    "speculative": models.speculative,
    "mirror": models.mirror,
    "mirror, default policy": lambda: models.mirror(policy=None),
}
OTHERS = [[3, 3, 8, 1, 0], [6] * 30]


def compiled(caplog, method, prompts=models.PROMPTS):
    """Names of the programs that are compiled while ``prompts`` are decoded."""
    caplog.clear()
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        jaxspec.generate(method, prompts, models.NEW_TOKENS)
    return [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]


@pytest.fixture(params=BUILDERS)
def build(request):
    """A method's builder, with its programs compiled."""
    jaxspec.generate(BUILDERS[request.param](), models.PROMPTS, models.NEW_TOKENS)
    return BUILDERS[request.param]


def test_the_first_call_compiles(caplog):
    """Otherwise the tests below could not fail."""
    assert compiled(caplog, jaxspec.autoregressive(models.random_model(models.stranger().network.config, 0)))


def test_a_second_call_compiles_nothing(build, caplog):
    method = build()
    jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS)
    assert compiled(caplog, method) == []


def test_other_prompts_of_like_length_compile_nothing(build, caplog):
    method = build()
    jaxspec.generate(method, models.PROMPTS, models.NEW_TOKENS)
    assert compiled(caplog, method, OTHERS) == []


def test_a_method_built_again_compiles_nothing(build, caplog):
    assert compiled(caplog, build()) == []
