"""Every kernel compiles for three architectures without a warning, where there is nvcc."""

import re
import shutil
import subprocess

import pytest

from refpeft.numerics.formats import FORMATS
from refpeft_cupy.kernel import defined_in, files, flattened
from refpeft_cupy.launch import OPTIONS

ARCHITECTURES = (80, 90, 100)
OWN = [a for n in ARCHITECTURES for a in ("-gencode", f"arch=compute_{n},code=sm_{n}")]
SHARED = ["-gencode", f"arch=compute_80,code=[{','.join(f'sm_{n}' for n in ARCHITECTURES)}]"]
"""CUDA's headers of 16-bit formats differ between architectures; without them, one pass over the source does for all."""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("storage", FORMATS)
def test_nvcc_compiles_every_kernel_without_a_warning(storage, tmp_path):
    """For sm_80, sm_90 and sm_100, with the options that nvrtc gets; and no array of a thread lies in memory."""
    source = tmp_path / "kernels.cu"
    source.write_text(flattened(*files()), "utf-8")
    architectures = OWN if storage.endswith("16") else SHARED
    options = [*OPTIONS, f"-DSTORAGE={storage}", "-Werror", "all-warnings", "-Xptxas", "-v", *architectures]
    done = subprocess.run(
        ["nvcc", *options, "--fatbin", "-o", str(tmp_path / "out"), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill", done.stderr)
    assert len(frames) == len(ARCHITECTURES) * len(defined_in(flattened(*files())))
    assert set(frames) == {("0", "0")}
