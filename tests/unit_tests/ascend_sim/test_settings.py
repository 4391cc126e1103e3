"""The environment that `ascend-sim run` gives a command, and what a process reads back from it."""

from pathlib import Path

from ascend_sim.settings import Settings, cache_directory, environment


def test_what_is_set_is_read_back():
    settings = Settings(Path("/libraries"), "module:function", Path("/reports"), shapes_only=True)
    given = environment(settings, Path("/wheel"), devices=3, memory_mib=512, environ={"LD_LIBRARY_PATH": "/other"})
    assert Settings.from_environment(given) == settings
    assert given["LD_LIBRARY_PATH"] == "/libraries:/other"
    assert given["PYTHONPATH"] == "/wheel"
    assert (given["ASCEND_SIM_DEVICES"], given["ASCEND_SIM_MEMORY_MIB"]) == ("3", "512")


def test_an_installed_torch_npu_needs_no_path(monkeypatch):
    monkeypatch.setattr("sys.path", ["/site-packages"])
    given = environment(Settings(Path("/l")), Path("/site-packages"), devices=1, memory_mib=1, environ={})
    assert "PYTHONPATH" not in given
    assert Settings.from_environment(given) == Settings(Path("/l"))


def test_outside_of_the_simulator():
    assert Settings.from_environment({}) is None


def test_cache_directory():
    assert cache_directory({"ASCEND_SIM_CACHE": "/here"}) == Path("/here")
    assert cache_directory({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/ascend_sim")
