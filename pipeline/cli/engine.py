"""Verbs of the local engine: status, start, stop, logs, prune, requirements."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from pipeline.cli.options import takes_settings

app = typer.Typer(help="The local engine, for machines without Docker.", no_args_is_help=True)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show whether it runs, where its state and log are, and what it lacks to run."""
    import dataclasses

    from pipeline.engine import local

    now, needs = local.status(), local.needs()
    if as_json:
        content = dataclasses.asdict(now) | {"needs": [dataclasses.asdict(n) for n in needs]}
        typer.echo(json.dumps(content, default=str))
        return
    typer.echo(f"{'running' if now.running else 'stopped'}, version {now.version}")
    for name, value in dataclasses.asdict(now).items():
        typer.echo(f"  {name:<12} {value if value is not None else '-'}")
    for need in needs:
        typer.echo(f"needs {need.what}: {need.why}; {need.mend}")


@app.command()
@takes_settings
def machine(
    flags: dict[str, str],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many cores and how much memory the engine has: whichever engine would build."""
    from pipeline import build
    from pipeline.cli.specs import spec_of

    settings, spec = spec_of(flags, "simple")
    cores, memory = build.machine(spec, settings)
    if as_json:
        typer.echo(json.dumps({"cores": cores, "memory": memory}))
    else:
        typer.echo(f"{cores} cores, {memory / 1e9:.1f} GB of memory")


@app.command()
def start() -> None:
    """Build it where it is not built, and start it where it is not running."""
    from pipeline.engine import local

    typer.echo(local.start(_say).runner_host)


@app.command()
def stop() -> None:
    """Stop it, and leave the machine as it was; its cache stays."""
    from pipeline.engine import local

    _say("stopped" if local.stop(_say) else "it was not running")


@app.command()
def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 100,
) -> None:
    """Print the end of its log."""
    from pipeline.engine import local
    from pipeline.report import tail

    path = local.log_path()
    typer.echo(tail(path, lines) if path.is_file() else "it has not run yet")


@app.command()
def prune(
    keep: Annotated[str, typer.Option(help="Space its cache may keep, as 20GB.")] = "0",
) -> None:
    """Throw its cache away, down to what it may keep."""
    from pipeline.engine import session

    freed = session.run(session.prune_local(keep, _say))
    typer.echo(f"{freed / 1e9:.1f} GB freed", err=True)


@app.command()
def requirements(
    install: Annotated[bool, typer.Option("--install", help="Install them by apt-get.")] = False,
) -> None:
    """Name what the local engine lacks on this machine, and the command that installs it."""
    import shlex
    import shutil
    import subprocess

    from pipeline.engine import local
    from pipeline.errors import EngineError

    needs = local.needs()
    for need in needs:
        typer.echo(f"{need.what}: {need.why}; {need.mend}", err=True)
    command = local.install(needs)
    if not command:
        return
    typer.echo(shlex.join(command))
    if install and shutil.which("apt-get"):
        for step in (["apt-get", "update"], command):
            if subprocess.run(step, stdout=sys.stderr, check=False).returncode != 0:
                raise EngineError(
                    "what the local engine lacks could not be installed",
                    why=f"{shlex.join(step)} failed, as shown above",
                    next_step="run it by hand and mend what it says",
                )


@app.command("helm-values")
def helm_values(
    storage: Annotated[int, typer.Option(min=50, help="GiB of the engine's volume.")] = 500,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of a Service; 0: kube-pod:// alone.")
    ] = 0,
) -> None:
    """Print the values of Dagger's Helm chart for an engine in Kubernetes; it keeps its cache."""
    from pipeline.engine import helm

    typer.echo(helm.as_yaml(helm.values(storage, port)), nl=False)
    release, namespace = "engine-a", "dagger"
    _say(f"next: pipe it into `{helm.command(release, namespace)}`, once for each engine,")
    _say(f"and name them in ENGINES: {helm.runner_host(release, namespace, port)}")
    if port:
        _say("whoever reaches that port is root on its node: let a NetworkPolicy choose who does")
