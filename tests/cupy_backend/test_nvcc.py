"""Every kernel compiles for three architectures without a warning, where there is nvcc."""

import shutil
import subprocess

import pytest

from refpeft_cupy.kernel import files, flattened
from refpeft_cupy.launch import OPTIONS

ARCHITECTURES = (80, 90, 100)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("file", files())
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_nvcc_compiles_every_kernel_without_a_warning(file, storage, tmp_path):
    """For sm_80, sm_90 and sm_100, with the options that nvrtc gets."""
    source = tmp_path / f"{file}.cu"
    source.write_text(flattened(file), "utf-8")
    architectures = [a for n in ARCHITECTURES for a in ("-gencode", f"arch=compute_{n},code=sm_{n}")]
    options = [*OPTIONS, f"-DSTORAGE={storage}", "-Werror", "all-warnings", *architectures]
    done = subprocess.run(
        ["nvcc", *options, "--fatbin", "-o", str(tmp_path / "out"), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
