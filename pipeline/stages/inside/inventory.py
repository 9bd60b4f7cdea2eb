"""Run inside a built image by its own Python: prints every package that is in it, as JSON.

Mounted for one exec and never part of the image. It keeps to the standard library, whatever the
version of Python, and prints the same for the same image.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys

FIELDS = ("Status-Abbrev", "Package", "Version", "Architecture", "source:Package", "source:Version")
FORMAT = "".join("${%s}\\t" % ("db:" + it if it.startswith("Status") else it) for it in FIELDS)


def main():
    print(
        json.dumps(
            {
                "os": os_release(),
                "interpreter": interpreter(),
                "apt": sorted(apt(), key=lambda it: (it["name"], it["arch"])),
                "python": sorted(python(), key=lambda it: (it["name"], it["version"])),
                "npm": npm(),
            },
            sort_keys=True,
        )
    )


def os_release():
    with open("/etc/os-release") as file:
        pairs = [line.strip().split("=", 1) for line in file if "=" in line]
    told = {name: value.strip("\"'") for name, value in pairs}
    # Ubuntu's and Debian's unstable have no number.
    return {
        "id": told["ID"],
        "version": told.get("VERSION_ID", ""),
        "codename": told.get("VERSION_CODENAME", ""),
        "name": told.get("PRETTY_NAME", ""),
    }


def interpreter():
    """Return the Python that runs this, and whether it is the distribution's own."""
    path = os.path.realpath(sys.executable)
    return {"version": "%d.%d.%d" % sys.version_info[:3], "own": path.startswith("/usr/")}


def apt():
    shown = subprocess.run(
        ["dpkg-query", "--show", "--showformat", FORMAT + "\\n"], stdout=subprocess.PIPE, check=True
    )
    for line in shown.stdout.decode().splitlines():
        status, name, version, arch, source, source_version = line.split("\t")[:6]
        if status.strip().endswith("i"):
            yield {
                "name": name,
                "version": version,
                "arch": arch,
                "source": source,
                "source_version": source_version,
            }


def python():
    seen = set()
    for found in importlib.metadata.distributions():
        # The first on the path is the one that is imported.
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower()
        if not name or name in seen:
            continue
        seen.add(name)
        record = found.read_text("RECORD")
        yield {
            "name": name,
            "version": found.version,
            "license": license_of(found.metadata),
            "sha256": archive_hash(found.read_text("direct_url.json")),
            "record": hashlib.sha256(record.encode()).hexdigest() if record else "",
        }


def license_of(metadata):
    """Return an SPDX expression where there is one, else how its authors call it, in one line."""
    expression = metadata.get("License-Expression")
    if expression:
        return expression
    names = [
        it.rpartition(" :: ")[2]
        for it in metadata.get_all("Classifier") or ()
        if it.startswith("License :: ") and it.count(" :: ") > 1
    ]
    named = (metadata.get("License") or "").strip()
    if named and "\n" not in named and len(named) < 100 and named != "UNKNOWN":
        return named
    return ", ".join(sorted(names))


def archive_hash(direct_url):
    """Return the sha256 of the file that it was installed from, where pip or uv wrote it down."""
    info = json.loads(direct_url or "{}").get("archive_info") or {}
    return (info.get("hashes") or {}).get("sha256", "")


def npm():
    """Return the prompt's package: it is the only one that npm brings."""
    path = "/usr/local/share/zsh/pure/prompt_pure_setup"
    if not os.path.exists(path):
        return []
    with open(path) as file:
        version = re.search(r"prompt_pure_state\[version\]=\"?([\d.]+)", file.read())
    return [{"name": "pure-prompt", "version": version.group(1) if version else ""}]


if __name__ == "__main__":
    main()
