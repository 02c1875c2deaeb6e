"""Certifications of the tests remember nothing of earlier ones, and leave nothing behind."""

import pytest

from refpeft_cupy.host import build


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """The user's cache is an empty folder of the session, but for the kernels in it: they are compiled once for all workers."""
    folder = tmp_path_factory.mktemp("cache")
    build.cache().mkdir(parents=True, exist_ok=True)
    (folder / "refpeft").mkdir()
    (folder / "refpeft" / "kernels").symlink_to(build.cache(), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield
