"""Hooks fire around a module's execution, and nobody else can tell that they are there."""

import importlib
import importlib.resources
import importlib.util
import inspect
import pickle
import runpy
import subprocess
import sys
import threading
from importlib.abc import MetaPathFinder
from importlib.machinery import NamespaceLoader, SourceFileLoader

import pytest

from ascend_patch.engine.importer import ImportHooks


@pytest.fixture
def hooks(stubs):
    made = ImportHooks()
    made.install()
    yield made
    made.uninstall()


def test_before_and_after_surround_the_body(stubs, hooks, fired, note):
    stubs.write({"UP.py": "import sys\nvalue = 1\nsys.modules[__name__].log.append('body')\n"})
    hooks.before(stubs.up, lambda spec: fired.append(f"before {spec.name} {spec.origin}"))
    hooks.before(stubs.up, lambda spec: setattr(sys.modules[stubs.up], "log", fired))
    hooks.after(stubs.up, lambda module: fired.append(f"after {module.value}"))
    stubs.load("UP")
    assert fired == [f"before {stubs.up} {stubs.folder / stubs.up}.py", "body", "after 1"]


def test_importers_bind_what_the_callback_left(stubs, hooks):
    stubs.write({"UP/__init__.py": "from UP.inner import f\n", "UP/inner.py": "def f(): return 'old'\n"})
    hooks.after(f"{stubs.up}.inner", lambda module: setattr(module, "f", lambda: "new"))
    assert stubs.load("UP").f() == "new"


def test_callbacks_run_in_order_of_registration(stubs, hooks, fired, note):
    stubs.write({"UP.py": ""})
    for name in ("first", "second"):
        hooks.after(stubs.up, note(name))
    stubs.load("UP")
    assert fired == ["first", "second"]


def test_finding_is_not_importing(stubs, hooks, fired, note):
    stubs.write({"UP/__init__.py": "", "UP/inner.py": ""})
    hooks.before(stubs.up, note("before"))
    hooks.after(stubs.up, note("after"))
    spec = importlib.util.find_spec(stubs.up)
    assert spec is not None and spec.submodule_search_locations
    assert fired == [] and stubs.up not in sys.modules
    importlib.import_module(stubs.up)
    assert fired == ["before", "after"]


def test_modules_nobody_asked_for_are_not_touched(stubs, hooks):
    stubs.write({"UP/__init__.py": "", "UP/inner.py": ""})
    hooks.after(f"{stubs.up}.inner", lambda module: None)
    assert hooks.find_spec(stubs.up, None) is None


def test_a_module_found_nowhere_stays_missing(stubs, hooks):
    hooks.after(stubs.up, lambda module: None)
    with pytest.raises(ModuleNotFoundError, match=stubs.up):
        stubs.load("UP")


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_failing_callback_fails_the_import(stubs, hooks, where):
    stubs.write({"UP.py": ""})

    def fail(subject):
        raise RuntimeError("no")

    getattr(hooks, where)(stubs.up, fail)
    for _ in range(2):  # a second attempt does not get a half-made module
        with pytest.raises(RuntimeError, match="no"):
            stubs.load("UP")
        assert stubs.up not in sys.modules


def test_a_failing_body_fails_the_import_and_after_is_not_called(stubs, hooks, fired, note):
    stubs.write({"UP.py": "1/0\n"})
    hooks.after(stubs.up, note("after"))
    with pytest.raises(ZeroDivisionError):
        stubs.load("UP")
    assert fired == [] and hooks.in_time(stubs.up)


def test_the_native_loader_is_left_in_place(stubs, hooks, fired, note):
    stubs.write({"UP/__init__.py": "def f():\n    return 1\n", "UP/data.txt": "text"})
    hooks.after(stubs.up, note("after"))
    module = stubs.load("UP")
    assert type(module.__loader__) is SourceFileLoader
    assert module.__spec__.loader is module.__loader__
    assert inspect.getsource(module.f) == "def f():\n    return 1\n"
    assert importlib.resources.files(stubs.up).joinpath("data.txt").read_text() == "text"
    assert pickle.loads(pickle.dumps(module.f)) is module.f
    assert fired == ["after"]


def test_a_found_spec_has_the_features_of_the_native_loader(stubs, hooks):
    stubs.write({"UP/__init__.py": "x = 1\n"})
    hooks.after(stubs.up, lambda module: None)
    loader = importlib.util.find_spec(stubs.up).loader
    assert loader.is_package(stubs.up)
    assert loader.get_source(stubs.up) == "x = 1\n"
    assert loader.get_resource_reader(stubs.up) is not None
    assert isinstance(pickle.loads(pickle.dumps(loader)), SourceFileLoader)


def test_namespace_package(stubs, hooks, fired, note):
    stubs.write({"UP/inner.py": "x = 1\n"})
    hooks.before(stubs.up, note("before"))
    hooks.after(stubs.up, note("after"))
    module = stubs.load("UP")
    assert fired == ["before", "after"]
    assert isinstance(module.__loader__, NamespaceLoader) and module.__spec__.loader is module.__loader__
    assert module.__file__ is None and list(module.__path__) == [str(stubs.folder / stubs.up)]
    assert stubs.load("UP.inner").x == 1
    assert importlib.resources.files(stubs.up).joinpath("inner.py").is_file()


def test_submodule_hooks_fire_after_the_parents(stubs, hooks, fired, note):
    stubs.write({"UP/__init__.py": "", "UP/a/__init__.py": "", "UP/a/b.py": ""})
    for name in ("UP.a.b", "UP.a", "UP"):
        hooks.before(stubs.named(name), note(name))
    stubs.load("UP.a.b")
    assert fired == ["UP", "UP.a", "UP.a.b"]


def test_lazily_imported_module(stubs, hooks, fired, note):
    stubs.write({"UP.py": "x = 1\n"})
    hooks.after(stubs.up, note("after"))
    spec = importlib.util.find_spec(stubs.up)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[stubs.up] = module
    spec.loader.exec_module(module)
    assert fired == []
    assert module.x == 1
    assert fired == ["after"]


def test_run_as_main_fires_for_the_parent_only(stubs, hooks, fired, note):
    stubs.write({"UP/__init__.py": "", "UP/tool.py": "result = (__name__, __spec__.name)\n"})
    for name in ("UP", "UP.tool"):
        hooks.before(stubs.named(name), note(name))
    ran = runpy.run_module(f"{stubs.up}.tool", run_name="__main__", alter_sys=True)
    assert ran["result"] == ("__main__", f"{stubs.up}.tool")
    assert fired == ["UP"]


def test_python_dash_m(stubs):
    stubs.write(
        {
            "sitecustomize.py": """
                from ascend_patch.engine.importer import ImportHooks
                hooks = ImportHooks()
                hooks.install()
                hooks.after("UP", lambda module: print("after", module.__name__))
                """,
            "UP/__init__.py": "",
            "UP/__main__.py": "print('main', __name__)\n",
        }
    )
    command = [sys.executable, "-m", stubs.up]
    path = ":".join([str(stubs.folder), *filter(None, sys.path)])
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == f"after {stubs.up}\nmain __main__\n"


def test_reload_fires_again(stubs, hooks, fired, note):
    stubs.write({"UP.py": ""})
    hooks.after(stubs.up, note("after"))
    module = stubs.load("UP")
    importlib.reload(module)
    assert fired == ["after", "after"]


def test_a_module_that_replaces_itself(stubs, hooks):
    stubs.write({"UP.py": "import sys\nclass Me: pass\nsys.modules[__name__] = Me()\n"})
    seen = []
    hooks.after(stubs.up, seen.append)
    assert stubs.load("UP") is seen[0]
    assert type(seen[0]).__name__ == "Me"


class _AnotherHookingFinder(MetaPathFinder):
    """What wrapt and others do: ask the import system again, guarded against themselves only."""

    def __init__(self) -> None:
        self.busy = False

    def find_spec(self, fullname, path=None, target=None):
        if self.busy or not fullname.startswith("stub_upstream"):
            return None
        self.busy = True
        try:
            return importlib.util.find_spec(fullname)
        finally:
            self.busy = False


@pytest.mark.parametrize("first", [True, False])
def test_beside_another_hooking_finder_callbacks_fire_once(stubs, hooks, fired, note, first):
    stubs.write({"UP.py": ""})
    sys.meta_path.insert(0 if first else 1, _AnotherHookingFinder())
    hooks.after(stubs.up, note("after"))
    stubs.load("UP")
    assert fired == ["after"]


def test_threads_importing_together_see_the_patched_module(stubs, hooks, fired):
    stubs.write({"UP.py": "import time\nvalue = 'old'\ntime.sleep(0.05)\n"})

    def change(module):
        fired.append("after")
        module.value = "new"

    hooks.after(stubs.up, change)
    start, seen = threading.Barrier(8), []

    def work():
        start.wait()
        seen.append(stubs.load("UP").value)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert seen == ["new"] * 8 and fired == ["after"]


def test_install_and_uninstall_are_idempotent(stubs, hooks, fired, note):
    stubs.write({"UP.py": ""})
    hooks.install()
    assert sys.meta_path.count(hooks) == 1
    hooks.after(stubs.up, note("after"))
    hooks.uninstall()
    hooks.uninstall()
    assert hooks not in sys.meta_path
    stubs.load("UP")
    assert fired == []


def test_discard(stubs, hooks, fired, note):
    stubs.write({"UP.py": ""})
    kept, dropped = note("kept"), note("dropped")
    for callback in (kept, dropped):
        hooks.after(stubs.up, callback)
    hooks.discard(stubs.up, dropped)
    stubs.load("UP")
    assert fired == ["kept"]


def test_in_time(stubs, hooks):
    stubs.write({"UP.py": ""})
    assert hooks.in_time(stubs.up)
    seen = []
    hooks.before(stubs.up, lambda spec: seen.append(hooks.in_time(stubs.up)))
    stubs.load("UP")
    assert seen == [True]
    assert not hooks.in_time(stubs.up)
