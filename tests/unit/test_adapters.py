import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("embedkeep.adapters.langchain", "langchain_core", "langchain"),
        ("embedkeep.adapters.llama_index", "llama_index", "llama-index"),
    ],
)
def test_an_adapter_without_its_framework_says_which_extra_brings_it(
    module: str, framework: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith((framework, module))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)

    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'embedkeep\[{extra}\]'"):
        importlib.import_module(module)
