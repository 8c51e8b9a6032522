"""The server: the result of a run is written to result.json in its directory, atomically."""

import json
import pathlib
import traceback

from flwr.serverapp import ServerApp

import jaxfed
from flower_app import task
from jaxfed import flower

app = ServerApp()


@app.main()
def main(grid, context):
    directory = pathlib.Path(context.run_config["directory"])
    try:
        algorithm = task.algorithm_of(context.run_config["algorithm"])
        _, history = flower.serve(
            grid,
            algorithm,
            task.start_of(algorithm),
            rounds=context.run_config["rounds"],
            replies=flower.Replies(timeout=120.0),
            checkpoint=jaxfed.Checkpointing(directory / "server", every=1),
            **task.ROUNDS,
        )
        result = {"history": history.to_dict()}
    except Exception:
        result = {"error": traceback.format_exc()}
    (directory / "result.tmp").write_text(json.dumps(result))
    (directory / "result.tmp").rename(directory / "result.json")
