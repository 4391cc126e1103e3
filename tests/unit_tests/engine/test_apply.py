"""What an engine does to a made-up upstream: applied, skipped, refused, taken back."""

import importlib
import sys
import threading

import pytest

from ascend_patch.engine import sources
from ascend_patch.engine.apply import Engine
from ascend_patch.engine.contract import Contract, Release
from ascend_patch.engine.errors import AscendPatchError, DeclarationError, PatchError
from ascend_patch.engine.fingerprint import SourceTree
from ascend_patch.engine.importer import ImportHooks
from ascend_patch.engine.patch import Environment

HERE = Environment(device="cpu", upstream="2.0")
UPSTREAM = {
    "UP/__init__.py": "",
    "UP/core.py": """
        def f(x):
            "Upstream's."
            return x

        class Layer:
            def forward(self, x):
                return x

        FLAG = False
        """,
    "UP/user.py": "from UP.core import f\ndef use(x):\n    return f(x)\n",
    "IMPL.py": """
        def ten(original):
            def wrapper(*args):
                return 10 * original(*args)
            return wrapper

        def plus_one(original):
            def wrapper(*args):
                return original(*args) + 1
            return wrapper

        def minus(x):
            return -x

        def fails(original):
            raise ValueError("not on a Monday")

        YES = True
        """,
}


@pytest.fixture
def upstream(stubs):
    stubs.write(UPSTREAM)
    return stubs


@pytest.fixture
def engine():
    """engine(*patches, **options) makes an installed engine that is reverted after the test."""
    made = []

    def make(*patches, contract=None, environment=HERE, **options):
        one = Engine(patches, environment, contract, **options)
        made.append(one)
        one.install()
        return one

    yield make
    for one in made:
        one.revert()


def record(stubs, *patches, version="2.0"):
    """A contract that holds what `stubs` has on disk now."""
    symbols = {symbol for patch in patches for symbol in (patch.target, *patch.consumers)}
    return Contract([Release.record(version, SourceTree(sources.folder(stubs.folder)), symbols)])


def statuses(engine):
    return [outcome.status for outcome in engine.outcomes()]


# Applied


def test_wrapped_where_importers_bind_it(upstream, engine):
    made = engine(upstream.patch("UP.core:f"))
    assert statuses(made) == ["pending"]
    assert upstream.load("UP.user").use(2) == 20
    assert statuses(made) == ["applied"]


def test_replaced(upstream, engine):
    engine(upstream.patch("UP.core:f", "IMPL:minus", "replace"))
    assert upstream.load("UP.user").use(2) == -2
    assert upstream.load("UP.core").f.__doc__ == "Upstream's."


def test_constant_replaced(upstream, engine):
    engine(upstream.patch("UP.core:FLAG", "IMPL:YES", "replace"))
    assert upstream.load("UP.core").FLAG is True


def test_replacement_first_then_wraps_in_order_of_declaration(upstream, engine):
    engine(
        upstream.patch("UP.core:f", "IMPL:ten", id="a"),
        upstream.patch("UP.core:f", "IMPL:plus_one", id="b"),
        upstream.patch("UP.core:f", "IMPL:minus", "replace", id="c"),
    )
    assert upstream.load("UP.core").f(2) == -2 * 10 + 1


def test_implementation_is_imported_only_when_it_is_needed(upstream, engine):
    engine(upstream.patch("UP.core:f"))
    assert upstream.impl not in sys.modules
    upstream.load("UP")
    assert upstream.impl not in sys.modules
    upstream.load("UP.core")
    assert upstream.impl in sys.modules


def test_install_is_idempotent(upstream, engine):
    made = engine(upstream.patch("UP.core:f"))
    made.install()
    assert upstream.load("UP.core").f(1) == 10
    made.install()
    assert upstream.load("UP.core").f(1) == 10


def test_reload_is_patched_once(upstream, engine):
    made = engine(upstream.patch("UP.core:f"))
    module = importlib.reload(upstream.load("UP.core"))
    assert module.f(1) == 10
    made.revert()
    assert module.f(1) == 1


def test_copy_taken_in_an_import_cycle_is_rebound_and_reported(upstream, engine):
    upstream.write({"UP/core.py": UPSTREAM["UP/core.py"] + "\n        import UP.user\n"})
    made = engine(upstream.patch("UP.core:f"))
    upstream.load("UP.core")
    assert upstream.load("UP.user").use(2) == 20
    assert f"{upstream.up}.user" in made.outcomes()[0].notices[0]
    made.revert()
    assert upstream.load("UP.user").use(2) == 2


def test_threads_importing_together_all_see_the_patch(upstream, engine):
    engine(upstream.patch("UP.core:f"), upstream.patch("UP.core:Layer.forward", id="other"))
    start, seen = threading.Barrier(8), []

    def work():
        start.wait()
        seen.append(upstream.load("UP.user").use(1) + upstream.load("UP.core").Layer().forward(1))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert seen == [20] * 8


def test_shared_hooks_may_be_installed_from_a_before_callback(upstream):
    hooks = ImportHooks()
    made = Engine([upstream.patch("UP.core:f")], HERE, hooks=hooks)
    hooks.before(f"{upstream.up}.core", lambda spec: made.install())
    hooks.install()
    try:
        assert upstream.load("UP.core").f(1) == 10
    finally:
        made.revert()
        hooks.uninstall()


# Taken back


def test_revert_restores_identity(upstream, engine):
    made = engine(
        upstream.patch("UP.core:f", id="a"),
        upstream.patch("UP.core:f", "IMPL:plus_one", id="b"),
        upstream.patch("UP.core:Layer.forward", id="c"),
    )
    core = upstream.load("UP.core")
    originals = core.f.__wrapped__.__wrapped__, vars(core.Layer)["forward"].__wrapped__
    made.revert()
    assert (core.f, vars(core.Layer)["forward"]) == originals
    assert originals[0].__code__.co_filename == core.__file__
    assert statuses(made) == ["pending"] * 3


def test_after_revert_nothing_fires(upstream, engine):
    engine(upstream.patch("UP.core:f")).revert()
    assert upstream.load("UP.core").f(1) == 1


# Skipped


def test_off_switch_leaves_identity(upstream, engine):
    made = engine(upstream.patch("UP.core:f", id="stub.off"), disabled={"stub.off"})
    assert upstream.load("UP.core").f.__code__.co_filename == upstream.load("UP.core").__file__
    assert made.outcomes()[0].status == "skipped" and made.outcomes()[0].detail == "disabled by id"


def test_off_switch_reaches_every_row_of_the_id_and_no_other(upstream, engine):
    rows = [upstream.patch("UP.core:f"), upstream.patch("UP.core:Layer.forward")]
    made = engine(*rows, upstream.patch("UP.core:f", "IMPL:plus_one", id="other"), disabled={"stub.patch"})
    core = upstream.load("UP.core")
    assert core.f(1) == 2 and core.Layer().forward(1) == 1
    assert statuses(made) == ["skipped", "skipped", "applied"]


def test_unknown_id_names_close_matches(upstream):
    with pytest.raises(AscendPatchError, match=r"No patch has the id stub.pach. Did you mean stub.patch\?"):
        Engine([upstream.patch("UP.core:f")], HERE, disabled={"stub.pach"})


def test_other_version_is_skipped(upstream, engine):
    made = engine(upstream.patch("UP.core:f", upstream="<2"))
    assert upstream.load("UP.core").f(1) == 1
    assert made.outcomes()[0].detail == "not for Megatron-LM 2.0 (<2)"


def test_condition_on_the_environment(upstream, engine):
    made = engine(
        upstream.patch("UP.core:f", when=lambda environment: f"not needed on {environment.device}"),
        upstream.patch("UP.core:Layer.forward", when=lambda environment: None),
    )
    assert upstream.load("UP.core").f(1) == 1
    assert made.outcomes()[0].detail == "not needed on cpu"
    assert statuses(made) == ["skipped", "applied"]


# Refused


def test_imported_too_early_names_the_importer(upstream, engine):
    upstream.load("UP.user")
    importer = type(sys)("stub_importer_of_upstream")
    importer.f, importer.__file__ = upstream.load("UP.core").f, "their/script.py"
    sys.modules[importer.__name__] = importer
    try:
        with pytest.raises(PatchError) as caught:
            engine(upstream.patch("UP.core:f"))
    finally:
        del sys.modules[importer.__name__]
    for part in (f"{upstream.up}.core had", "stub_importer_of_upstream (their/script.py)", "ASCEND_PATCH=1"):
        assert part in str(caught.value)
    assert upstream.load("UP.core").f(1) == 1


@pytest.mark.parametrize("target", ["UP.core:gone", "UP.core:Layer.gone", "UP.core:Gone.forward"])
@pytest.mark.parametrize("mode", ["wrap", "replace"])
def test_missing_target(upstream, engine, target, mode):
    made = engine(upstream.patch("UP.core:f", id="a"), upstream.patch(target, mode=mode, id="b"))
    with pytest.raises(PatchError) as caught:
        upstream.load("UP.core")
    for part in ("patch b ", upstream.named(target), "Megatron-LM 2.0", ">=1,<3", "ASCEND_PATCH_DISABLE=b"):
        assert part in str(caught.value)
    assert f"{upstream.up}.core" not in sys.modules
    assert statuses(made)[1] == "failed"


def test_a_name_that_needs_an_extension_can_be_replaced_but_not_wrapped(upstream, engine):
    upstream.write({"UP/core.py": "try:\n    import no_such_extension\nexcept ImportError:\n    pass\n"})
    made = engine(upstream.patch("UP.core:no_such_extension", "IMPL:YES", "replace"))
    core = upstream.load("UP.core")
    assert core.no_such_extension is True
    made.revert()
    assert not hasattr(core, "no_such_extension")
    upstream.forget()
    engine(upstream.patch("UP.core:no_such_extension"))
    with pytest.raises(PatchError, match="has no no_such_extension"):
        upstream.load("UP.core")


@pytest.mark.parametrize(
    ("impl", "why"),
    [
        ("no_such_module_anywhere:f", "ModuleNotFoundError"),
        ("IMPL:gone", "has no attribute 'gone'"),
        ("IMPL_broken:f", "ZeroDivisionError"),
        ("IMPL:fails", "not on a Monday"),
    ],
)
def test_failing_implementation(upstream, engine, impl, why):
    upstream.write({"IMPL_broken.py": "1/0\n"})
    made = engine(upstream.patch("UP.core:f", id="good"), upstream.patch("UP.core:f", impl, id="bad"))
    with pytest.raises(PatchError, match=why) as caught:
        upstream.load("UP.user")
    assert "patch bad " in str(caught.value) and upstream.named(impl) in str(caught.value)
    assert f"{upstream.up}.core" not in sys.modules
    assert statuses(made)[1] == "failed"


def test_double_replace(upstream):
    rows = [upstream.patch("UP.core:f", "IMPL:minus", "replace", id=name) for name in "ab"]
    with pytest.raises(DeclarationError, match=r"patches a .* and b .* both replace"):
        Engine(rows, HERE)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (">=1,<2", ">=2,<3", False),
        ("<2", ">=2", False),
        ("==1.5.*", ">=1.6", False),
        (">=1,<2.1", ">=2,<3", True),
        ("<=2", ">=2", True),
        (">=1", ">=5", True),
        (">1,<3", "==2.2", True),
        ("", ">=2", True),
    ],
)
def test_replacing_in_disjoint_ranges(upstream, one, other, clash):
    rows = [upstream.patch("UP.core:f", "IMPL:minus", "replace", upstream=text) for text in (one, other)]
    if clash:
        with pytest.raises(DeclarationError, match="both replace"):
            Engine(rows, HERE)
    else:
        Engine(rows, HERE)


# Drift: the contract was recorded, then upstream changed


def change(stubs, old, new):
    text = UPSTREAM["UP/core.py"]
    assert old in text
    stubs.write({"UP/core.py": text.replace(old, new)})


def test_unchanged_upstream_applies_without_notices(upstream, engine):
    patch = upstream.patch("UP.core:f", "IMPL:minus", "replace")
    made = engine(patch, contract=record(upstream, patch))
    assert upstream.load("UP.user").use(1) == -1
    assert made.outcomes()[0].notices == ()


def test_changed_file_with_an_unchanged_symbol_applies_without_notices(upstream, engine):
    patch = upstream.patch("UP.core:f", "IMPL:minus", "replace")
    contract = record(upstream, patch)
    change(upstream, "FLAG = False", "FLAG = None  # something else")
    made = engine(patch, contract=contract)
    upstream.load("UP.core")
    assert made.outcomes()[0].notices == () and statuses(made) == ["applied"]


@pytest.mark.parametrize("mode", ["wrap", "replace"])
def test_changed_signature(upstream, engine, mode):
    patch = upstream.patch("UP.core:f", mode=mode)
    contract = record(upstream, patch)
    change(upstream, "def f(x):", "def f(x, y=None):")
    with pytest.raises(PatchError) as caught:
        engine(patch, contract=contract)
    text = str(caught.value)
    for part in ("Megatron-LM 2.0", "stub.patch (>=1,<3)", f"{upstream.up}.core:f has another signature"):
        assert part in text
    for step in ("ASCEND_PATCH_DISABLE=stub.patch", "ASCEND_PATCH_ALLOW_DRIFT=1", "ascend-patch contract"):
        assert step in text
    assert upstream.load("UP.core").f(1) == 1


def test_changed_body_fails_a_replace(upstream, engine):
    patch = upstream.patch("UP.core:f", "IMPL:minus", "replace")
    contract = record(upstream, patch)
    change(upstream, "return x\n\n        class", "return x + 0\n\n        class")
    with pytest.raises(PatchError, match="has another body"):
        engine(patch, contract=contract)


def test_changed_body_is_a_notice_for_a_wrap(upstream, engine):
    patch = upstream.patch("UP.core:f")
    contract = record(upstream, patch)
    change(upstream, "return x\n\n        class", "return x + 0\n\n        class")
    made = engine(patch, contract=contract)
    assert upstream.load("UP.core").f(1) == 10
    assert "has another body" in made.outcomes()[0].notices[0]


def test_changed_consumer_fails_a_replace_and_is_a_notice_for_a_wrap(upstream, engine):
    rows = [upstream.patch("UP.core:f", mode=mode, consumers=["UP.core:Layer"]) for mode in ("wrap", "replace")]
    contract = record(upstream, *rows)
    change(upstream, "def forward(self, x):", "def forward(self, x, mask=None):")
    made = engine(rows[0], contract=contract)
    assert "core:Layer" in made.outcomes()[0].notices[0]
    made.revert()
    with pytest.raises(PatchError, match="core:Layer"):
        engine(rows[1], contract=contract)


def test_all_drift_is_told_at_once(upstream, engine):
    rows = [upstream.patch("UP.core:f", id="a"), upstream.patch("UP.core:Layer.forward", id="b")]
    contract = record(upstream, *rows)
    upstream.write({"UP/core.py": "x = 1\n"})
    with pytest.raises(PatchError, match=r"2 of 2 patches: a .*does not exist \| b .*ASCEND_PATCH_DISABLE=a,b"):
        engine(*rows, contract=contract)


def test_a_second_attempt_does_not_get_past_drift(upstream):
    patch = upstream.patch("UP.core:f")
    contract = record(upstream, patch)
    change(upstream, "def f(x):", "def f(x, y=None):")
    made = Engine([patch], HERE, contract)
    for _ in range(2):
        with pytest.raises(PatchError, match="another signature"):
            made.install()
        assert statuses(made) == ["failed"]


def test_vanished_module_is_told_although_nobody_would_import_it(upstream, engine):
    patch = upstream.patch("UP.core:f")
    contract = record(upstream, patch)
    (upstream.folder / upstream.up / "core.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(PatchError, match="does not exist"):
        engine(patch, contract=contract)


def test_package_that_is_not_installed_is_no_drift(upstream, engine):
    patch = upstream.patch("UP.core:f")
    absent = upstream.patch("UP_extra.core:f")
    made = engine(patch, absent, contract=record(upstream, patch, absent))
    upstream.load("UP.core")
    assert statuses(made) == ["applied", "pending"]


def test_symbol_that_was_never_recorded(upstream, engine):
    with pytest.raises(PatchError, match="is not recorded for any release in range"):
        engine(upstream.patch("UP.core:f"), contract=Contract([Release("2.0", {}, {})]))


def test_known_from_another_release_in_range(upstream, engine):
    patch = upstream.patch("UP.core:f", "IMPL:minus", "replace")
    one = record(upstream, patch, version="1.0").release("1.0")
    change(upstream, "return x\n\n        class", "return x + 0\n\n        class")
    two = record(upstream, patch, version="2.0").release("2.0")
    change(upstream, "FLAG = False", "FLAG = 0")  # f is as in 1.0 again
    made = engine(patch, contract=Contract([one, two]))
    upstream.load("UP.core")
    assert statuses(made) == ["applied"]


def test_release_outside_the_range_does_not_vouch(upstream, engine):
    patch = upstream.patch("UP.core:f", "IMPL:minus", "replace", upstream=">=2")
    outside = record(upstream, patch, version="1.0").release("1.0")
    change(upstream, "return x\n\n        class", "return x + 0\n\n        class")
    inside = record(upstream, patch, version="2.0").release("2.0")
    change(upstream, "FLAG = False", "FLAG = 0")
    with pytest.raises(PatchError, match="has another body"):
        engine(patch, contract=Contract([outside, inside]))


def test_allowed_drift_applies_with_a_notice(upstream, engine):
    patch = upstream.patch("UP.core:f")
    contract = record(upstream, patch)
    change(upstream, "def f(x):", "def f(x, y=None):")
    made = engine(patch, contract=contract, allow_drift=True)
    assert upstream.load("UP.core").f(1) == 10
    assert "another signature" in made.outcomes()[0].notices[0]


def test_allowed_drift_records_what_cannot_be_applied(upstream, engine):
    rows = [upstream.patch("UP.core:f", id="a"), upstream.patch("UP.core:Layer.forward", id="b")]
    contract = record(upstream, *rows)
    upstream.write({"UP/core.py": "class Layer:\n    def forward(self, x):\n        return x\n"})
    made = engine(*rows, contract=contract, allow_drift=True)
    assert upstream.load("UP.core").Layer().forward(1) == 10
    assert statuses(made) == ["failed", "applied"]


def test_disabled_patch_is_not_checked(upstream, engine):
    patch = upstream.patch("UP.core:f")
    contract = record(upstream, patch)
    upstream.write({"UP/core.py": "x = 1\n"})
    made = engine(patch, contract=contract, disabled={"stub.patch"})
    assert upstream.load("UP.core").x == 1 and statuses(made) == ["skipped"]


def test_checking_imports_nothing(upstream, engine):
    patch = upstream.patch("UP.core:f")
    engine(patch, contract=record(upstream, patch))
    assert not [name for name in sys.modules if name.startswith(upstream.up)]
