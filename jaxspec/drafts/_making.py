"""From what a user passes as a draft to a drafter for a target: the one function that knows the kinds of models."""

from jaxspec.drafts.base import Draft
from jaxspec.drafts.plain import Plain
from jaxspec.drafts.streams import StreamingNetwork, Streams
from jaxspec.models.base import Model
from jaxspec.models.dtypes import check_dtype
from jaxspec.models.vocabulary import fitted
from jaxspec.verify.features import check_reads


def draft_for(target: Model, draft: Model | Draft) -> Draft:
    """Return a draft for a target.

    Args:
        target: the model whose text comes out.
        draft: a language model with the target's tokenizer, or a ``Draft`` of any kind.

    Raises:
        ValueError: vocabularies that differ, a type too narrow to compute in, hidden states that the target lacks.
    """
    if isinstance(draft, Model):
        check_dtype(draft, "draft")
        network, params, text = fitted(target, draft)
        return Draft(Streams(network) if isinstance(network, StreamingNetwork) else Plain(network), params, text)
    drafter = draft.drafter.for_target(target.network)
    check_reads(target.network, drafter.reads)
    return draft._replace(drafter=drafter)
