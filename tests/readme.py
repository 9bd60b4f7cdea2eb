"""``make docs``: the parts of both READMEs that are made from the code, and a test holds equal."""

from __future__ import annotations

from pathlib import Path

from pipeline import plan, settings, validate

README = Path(__file__).parents[1] / "README.md"
KOREAN = README.with_name("README.ko.md")


def generated() -> dict[str, str]:
    """Return each generated part by the name in its markers."""
    spec = validate.image_spec(settings.load(environ={}, env_file=Path("/nonexistent")).settings)
    return {
        "settings": settings_table(),
        "stages": f"```mermaid\n{plan.mermaid(plan.plan(spec))}\n```",
    }


def settings_table() -> str:
    """Return every setting as a Markdown table, in the groups that help shows."""
    rows = ["| Variable | Default | Allowed | What it is |", "| --- | --- | --- | --- |"]
    group = ""
    for name, field in settings.NAMES.items():
        if settings.group_of(field) != group:
            group = settings.group_of(field)
            rows.append(f"| **{group}** | | | |")
        default = f"`{field.default}`" if field.default else ""
        allowed = settings.allowed_values(field).replace("|", "\\|")
        rows.append(f"| `{name}` | {default} | {allowed} | {field.description} |")
    return "\n".join(rows)


def renewed(text: str) -> str:
    """Return a README with every generated part as it is now."""
    for name, content in generated().items():
        start, end = f"<!-- {name}: made by `make docs` -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


if __name__ == "__main__":
    for file in (README, KOREAN):
        file.write_text(renewed(file.read_text()))
