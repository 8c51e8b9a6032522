"""The process behind ``_bench_methods.Worker``: pickled commands in, one pickled result per setting out."""

import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial

from jaxspec.cli._bench_methods import build, grown
from jaxspec.cli._methods import batch_scheduling
from jaxspec.zoo import load


def main(pair_name: str) -> None:
    """Run commands until the input ends. Settings of one command run in parallel: only ``warm`` has several."""
    batch_scheduling()
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    pair = load(pair_name)
    of_size = lru_cache(2)(partial(grown, pair))
    built = cache(lambda setting: build(setting, of_size(setting.growth)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while True:
            try:
                command, settings, prompts, new = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            methods = [built(setting) for setting in settings]
            run = partial(command, prompts=prompts, new=new)
            for result in pool.map(run, methods) if len(methods) > 1 else map(run, methods):
                pickle.dump(result, answers)
                answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
