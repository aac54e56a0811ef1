"""The public names: each exists, is documented, and is imported on first use only."""

import subprocess
import sys

import poyo_ssl


def test_every_public_name_exists_and_is_documented():
    names = [name for name in poyo_ssl.__all__ if not name.startswith("_")]
    assert names == sorted(set(names))
    for name in names:
        found = getattr(poyo_ssl, name)
        assert found.__name__ == name
        assert found.__module__.startswith("poyo_ssl."), name
        assert found.__doc__, name


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, poyo_ssl; dir(poyo_ssl); poyo_ssl.FinetuneConfig(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"'torch'", "'numpy'", "'pandas'"} & set(loaded.strip("[]\n").split(", "))
