"""Put empty libraries in place of the CUDA libraries that an installed torch links: cuda_stand_ins.py SITE_PACKAGES.

Each stand-in has the name of a library that is missing and defines the symbols that torch's libraries take from it,
under the versions that they ask for. Nothing in them works: torch imports, finds no device, and computes on the CPU.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

SYSTEM = ("libc", "libm", "libdl", "libpthread", "librt", "libgcc_s", "libstdc++", "ld-linux-x86-64")


def output(*command):
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def symbols(library):
    """Each dynamic symbol of a library: its name, its version or "", and whether it must come from elsewhere."""
    for line in output("readelf", "--dyn-syms", "--wide", str(library)).splitlines():
        words = line.split()
        if len(words) < 8 or not words[0].rstrip(":").isdigit():
            continue
        missing = words[6] == "UND"
        if not (missing and words[4] == "WEAK"):  # what may be missing
            name, _, version = words[7].partition("@")
            yield name, version.lstrip("@"), missing


def libraries_of_versions(library):
    """Which library each version of a symbol is asked of."""
    found, asked = {}, None
    for line in output("readelf", "--version-info", "--wide", str(library)).splitlines():
        if match := re.search(r"File: (\S+)", line):
            asked = match[1]
        elif (match := re.search(r"Name: (\S+)\s+Flags", line)) and asked:
            found[match[1]] = asked
    return found


def system_libraries():
    """The libraries of the machine that torch takes other symbols from."""
    names = [f"{name}.so.{number}" for name in SYSTEM for number in (1, 2, 6)]
    places = [Path(output("gcc", f"-print-file-name={name}").strip()) for name in names]
    return [place for place in places if place.is_absolute()]


def write(name, symbols_of_versions, folder):
    """Compile a library that defines these symbols."""
    with tempfile.TemporaryDirectory() as scratch:
        source, versions = Path(scratch, "stand_in.c"), Path(scratch, "versions.map")
        every = {symbol for some in symbols_of_versions.values() for symbol in some}
        source.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in sorted(every)))
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        named = {version: some for version, some in symbols_of_versions.items() if version}
        if named:
            versions.write_text(
                "".join(f"{version} {{ global: {'; '.join(sorted(some))}; }};\n" for version, some in named.items())
                + ("X_1 { global: *; };\n" if "" in symbols_of_versions else "")
            )
            command.append(f"-Wl,--version-script={versions}")
        subprocess.run([*command, str(source)], check=True)


def main(site_packages):
    """Write what is missing beside torch's own libraries."""
    folder = Path(site_packages, "torch", "lib")
    own = [path for path in folder.glob("*.so*") if not path.is_symlink()]
    installed = [*Path(site_packages).glob("nvidia/*/lib/*.so*")]
    there = {path.name for path in (*folder.iterdir(), *installed)}
    missing = {
        name
        for path in own
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", output("readelf", "--dynamic", "--wide", str(path)))
        if name not in there and name.partition(".so")[0] not in SYSTEM
    }
    if not missing:
        return
    defined = {
        name for path in (*own, *installed, *system_libraries()) for name, _, taken in symbols(path) if not taken
    }
    wanted = {name: defaultdict(set) for name in missing}
    # Symbols without a version could come from any library: one of them defines all.
    for_all = min(missing, key=lambda name: (not name.startswith("libnccl"), name))
    for path in own:
        asked_of = libraries_of_versions(path)
        for name, version, taken in symbols(path):
            if not taken or not re.fullmatch(r"\w+", name):
                continue
            if version and asked_of.get(version) in missing:
                wanted[asked_of[version]][version].add(name)
            elif not version and name not in defined and not name.startswith(("Py", "_Py")):
                wanted[for_all][""].add(name)
    for name, symbols_of_versions in wanted.items():
        write(name, symbols_of_versions, folder)
    print(f"stand-ins for {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
