"""What a GPU machine without a network lacks, as a folder that can be copied there; and putting it to use.

    python experiments/gpu/bundle.py [PYTHON_VERSION]

.gpu-bundle/wheels/ holds packages in the versions of constraints.txt for that Python (3.12 if none is given) on Linux,
.gpu-bundle/folders/ pure Python packages that have no wheels, copied from this environment.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / ".gpu-bundle"
# Beside torch, transformers, accelerate, peft, pytest, pytest-xdist and hypothesis, which the machine has. DeepSpeed needs
# a pydantic and a pydantic-core that fit each other.
WHEELS = (
    "hydra-core", "omegaconf", "datasets", "dill", "multiprocess", "xxhash", "trl", "rich", "gguf", "plotly", "textblob",
    "typing_extensions", "pydantic", "pydantic_core",
)  # fmt: skip
FOLDERS = ("deepspeed", "hjson", "antlr4")


def main() -> None:
    """Build .gpu-bundle/ anew."""
    version = sys.argv[1] if len(sys.argv) > 1 else "3.12"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line.partition("==")[0] in WHEELS]
    shutil.rmtree(BUNDLE, ignore_errors=True)
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", version,
        "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64", "--dest", str(BUNDLE / "wheels"),
    ]  # fmt: skip
    subprocess.run([*command, *pinned], check=True)
    for name in FOLDERS:
        found = find_spec(name)
        assert found is not None
        assert found.submodule_search_locations is not None
        source = found.submodule_search_locations[0]
        shutil.copytree(source, BUNDLE / "folders" / name, ignore=shutil.ignore_patterns("__pycache__"))
    size = sum(file.stat().st_size for file in BUNDLE.rglob("*") if file.is_file())
    print(f"{BUNDLE}: {len(pinned)} wheels and {len(FOLDERS)} folders for Python {version}, {size / 1e6:.0f} MB")


def unpack(bundle: Path = BUNDLE) -> list[str]:
    """The folders that PYTHONPATH must name on the GPU machine: the wheels, installed on the first call, the copied packages,
    and r2m itself as it is in this repository.

    Raises:
        SystemExit: there is no bundle, or one for another Python.
    """
    if not bundle.is_dir():
        raise SystemExit(f"r2m is not installed here and there is no {bundle}: see experiments/gpu/README.md")
    site, partial = bundle / "site", bundle / "site.partial"
    if not site.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        wheels = sorted(map(str, (bundle / "wheels").glob("*.whl")))
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            str(partial),
        ]
        if subprocess.run([*command, *wheels]).returncode:
            raise SystemExit(
                f"{bundle}: is it for another Python than this one, {sys.version.split()[0]}? Build it again for that"
            )
        partial.rename(site)
    package = bundle / "r2m" / "r2m_cli"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in [*(ROOT / "src" / "r2m_cli").iterdir(), ROOT / "conf"]:  # conf/ is its package r2m_cli.conf
        (package / source.name).symlink_to(source)
    return [str(folder) for folder in (package.parent, site, bundle / "folders")]


if __name__ == "__main__":
    main()
