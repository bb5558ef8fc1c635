"""Check this machine: `minigpt doctor`."""

from dataclasses import asdict, dataclass

from minigpt.cli.arguments import parse
from minigpt.console import console, loading, out, out_json


@dataclass(frozen=True)
class Doctor:
    """Check everything that minigpt needs on this machine, and say what to fix. Takes half a minute.

    minigpt doctor
    minigpt doctor --json

    Exit code 0 when everything that minigpt needs works, 1 when something is broken. Optional parts never fail.
    """

    json: bool = False
    """Print one JSON object: ok, seconds, checks [name, ok (null: optional and missing), detail, advice, seconds,
    figures]."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Doctor, argv, "doctor")
    loading(quiet=True)
    from rich.markup import escape

    from minigpt.machine.doctor import all_probes, examine

    checks = []
    with console.status("starting") as status:
        for check in examine(all_probes(), lambda name: status.update(f"trying {escape(name)}")):
            checks.append(check)
            if not args.json:
                mark = {True: "ok  ", False: "FAIL", None: "-   "}[check.ok]
                out(f"{mark} {check.name:<18} {check.detail}")
                if check.advice:
                    out(f"{'':<24}-> {check.advice}")
    broken = [check.name for check in checks if check.ok is False]
    seconds = sum(check.seconds for check in checks)
    if args.json:
        out_json({"ok": not broken, "seconds": round(seconds, 3), "checks": [asdict(check) for check in checks]})
    elif broken:
        out(f"\nbroken: {', '.join(broken)}; the line below each says what to do")
    else:
        out(f"\nall that minigpt needs works here ({len(checks)} checks in {seconds:.0f} s)")
    return 1 if broken else 0
