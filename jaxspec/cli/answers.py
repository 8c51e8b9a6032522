"""What a target answers for training: prompts, how many, how long, and where its answers are kept."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxspec.cli.checks import at_least, check_readable
from jaxspec.cli.shared import PROMPT, prompts_of, with_tokenizer
from jaxspec.models.base import Model
from jaxspec.text import token_rows
from jaxspec.text.prompt_files import conversation_of
from jaxspec.text.prompts import Continued
from jaxspec.training import Schedule
from jaxspec.zoo import PAIRS

#: One of so many answers is held out.
HELD_OUT = 8
#: Most answers that are held out.
MOST_HELD_OUT = 32


@dataclass(frozen=True)
class Answers:
    """Prompts that a target answers, and the time there is; of ``train draft`` and ``train lens``.

    Attributes:
        target: name of an embedded pair, a folder written by train or convert, or a published checkpoint.
        prompts: what the target answers. .jsonl with "prompt", "question", "messages" or "turns": whole prompts, put
            through the target's chat template if it has one. .txt files, folders of them, or JSON lines with "user" and
            "text": windows of these. Default: questions that an instruct model asks itself; for others, the training
            roles of the embedded pair.
        exclude: files of whole prompts that are not trained on, such as those of a benchmark.
        count: how many prompts the target answers.
        new_tokens: longest answer.
        answers: folder where the target's answers and hidden states are kept, which several drafts and exits can share;
            default: OUT.
        minutes: of optimiser steps, in place of the schedule's number of steps; the answers are written before. Of
            train lens: of it all, answers too, unless these have a folder of their own; default: 30.
    """

    target: str = PAIRS[0]
    prompts: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=("--texts",))] = ()
    exclude: tuple[Path, ...] = ()
    count: int = 512
    new_tokens: int = 96
    answers: Path | None = None
    minutes: float | None = None

    def check(self, window: int = 0) -> None:
        """Check the numbers and paths before models are loaded.

        Args:
            window: γ, which an answer has to exceed.

        Raises:
            ValueError: a number below its minimum, a path that cannot be read.
        """
        at_least(2, count=self.count)
        at_least(window + 1, new_tokens=self.new_tokens)
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"expected minutes > 0, got {self.minutes}")
        for path in (*self.prompts, *self.exclude):
            check_readable(path)

    def timed(self, schedule: Schedule) -> Schedule:
        """Return a schedule for so many minutes, or as it is."""
        return schedule if self.minutes is None else replace(schedule, minutes=self.minutes)

    def folder(self, out: Path) -> Path:
        """Return where answers are kept."""
        return self.answers or out

    def hidden(self, out: Path) -> Path:
        """Return where hidden states are kept."""
        return self.folder(out) / "hidden"

    def written(self, target: Model, out: Path) -> Continued:
        """Return the target's answers to all prompts."""
        from jaxspec.generation import continued

        prompts = self.prompts_for(target, out)
        return continued(target, prompts, self.new_tokens, progress=True, directory=self.folder(out))

    def prompts_for(self, target: Model, out: Path) -> list[list[int]]:
        """Return the token ids of the prompts, shuffled; questions that the target asks itself are kept."""
        from jaxspec.federated import read_roles, split_roles
        from jaxspec.generation import own_questions
        from jaxspec.generation.requests import encoded
        from jaxspec.zoo.recipe import held_out_ids

        text = with_tokenizer(target.text)
        if self.prompts:
            ids = prompts_of(text, self.count, self.prompts, self.exclude)
            return [ids[place] for place in np.random.default_rng(0).permutation(len(ids))]
        if text.template is not None and text.stop:
            questions = own_questions(target, self.count, progress=True, directory=self.folder(out))
            return [row.tolist() for row in encoded([conversation_of(each) for each in questions], text)]
        texts = [role.text for role in split_roles(read_roles(), held_out_ids())[0]]
        rows, _ = token_rows(text, texts, PROMPT, -(-self.count // len(texts)))
        return np.random.default_rng(0).permutation(rows)[: self.count].tolist()


def divided(texts: Continued) -> tuple[Continued, Continued]:
    """Return answers for training, and those that are held out."""
    held = min(MOST_HELD_OUT, max(1, len(texts.tokens) // HELD_OUT))
    return texts.rows(slice(held, None)), texts.rows(slice(held))
