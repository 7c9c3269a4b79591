"""The tree of commands.

To add one: write a function with `@job` in `mtrec_ray/api.py` and an entry in COMMANDS. Its words are arguments, the
others options, where `--a,--b` is one option with two names; each names its dotted setting after `=` unless both have
one name. A new group gets a line in GROUPS. Nothing heavy is imported before a command runs.
"""

import click

from mtrec_ray import api
from mtrec_ray.commands.command import JobCommand

GROUPS = {
    "lake": "Build, embed and check lakes.",
    "pairs": "Show the pairs of a training sample.",
    "train": "Train propensity models and eliminators.",
    "runs": "List and show training runs.",
    "evaluate": "Evaluate propensity runs on test users.",
    "search": "Search settings on validation users.",
    "partition": "Show which territories share a group.",
    "store": "Load the online store of serving.",
}
RUN = "--name --runs --seed --workers=runner.workers --gpu=runner.use_gpu"
SEARCH = "--name --trials --trials-at-once --seed --searches"
RESUME = {"--resume": "Resume a stopped search of this name; reads Ray Tune's pickles, so only your own."}
NO_SETTINGS = ("config", "set", "print_config", "help_all")

COMMANDS = {
    "quickstart": JobCommand(api.quickstart, "SOURCE=dataset --raw --out --full --seeds"),
    "lake init": JobCommand(api.init_lake, "RAW --out --overwrite", without=NO_SETTINGS),
    "lake build": JobCommand(
        api.build_lake,
        "SOURCE=dataset --out --raw --download --on-bad-rows=build.on_bad_rows --overwrite=build.overwrite",
    ),
    "lake check": JobCommand(api.check_lake, "LAKE", without=NO_SETTINGS),
    "lake show": JobCommand(api.show_lake, "LAKE", without=NO_SETTINGS),
    "lake embed": JobCommand(api.embed_lake, "LAKE"),
    "pairs show": JobCommand(api.show_pairs, "LAKE"),
    "train propensity": JobCommand(
        api.train_propensity,
        "--lake --model,--kind=kind --preset --groups=model.groups --group-block=model.group_block --incremental "
        + RUN,
    ),
    "train backbone": JobCommand(api.train_backbone, f"--lake --kind=model.kind {RUN}"),
    "train eliminators": JobCommand(api.train_eliminators, f"--backbone --combinations --method --pack-size {RUN}"),
    "runs list": JobCommand(api.list_runs, "RUNS", without=NO_SETTINGS),
    "runs show": JobCommand(api.show_run, "RUN --runs", without=NO_SETTINGS),
    "evaluate propensity": JobCommand(api.evaluate, "RUN...=runs --out"),
    "audit": JobCommand(api.audit, "RUN --compare --out --card"),
    "report": JobCommand(api.make_report, "RESULT...=results --audit --card --out"),
    "bundle": JobCommand(api.make_bundle, "RUN --out --audit --propensity --evaluation"),
    "search propensity": JobCommand(api.search_propensity, f"--lake {SEARCH} --workers", switches=RESUME),
    "search eliminators": JobCommand(api.search_eliminators, f"--backbone --combinations {SEARCH}", switches=RESUME),
    "partition show": JobCommand(api.show_partition, "PARTITION --lake --out"),
    "store load": JobCommand(api.load_store, "LAKE --store"),
    "serve": JobCommand(api.serve, "BUNDLE --store --host --port", without=("json",)),
    "promote": JobCommand(api.promote, "BUNDLE --pointer"),
    "rollback": JobCommand(api.rollback, "--pointer", without=NO_SETTINGS),
}


class _Group(click.Group):
    """Lists its commands in the order of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


app = _Group(
    "mtrec",
    help="Recommenders for many territories on Ray: less popularity bias, and attributes that users may switch off.",
    context_settings={"max_content_width": 120},
)
_groups = {name: _Group(name, help=text) for name, text in GROUPS.items()}
for _path, _command in COMMANDS.items():
    _group, _, _name = _path.rpartition(" ")
    if _group:
        app.add_command(_groups[_group])
    (_groups[_group] if _group else app).add_command(_command, _name)
