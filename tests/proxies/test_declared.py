"""What an installed package offers as proxies is examined before anything is computed."""

import pytest
from plugin_spaces import package_installed

from zcpipe.errors import CapabilityError
from zcpipe.proxies import get_proxy, list_proxies

SOURCE = """
from dataclasses import replace

from zcpipe.ops import covariance
from zcpipe.proxies.aznas import RECIPE
from zcpipe.proxies.base import CustomStatistic, GradientStatistic, MapStatistic, Proxy, Recipe

energy = MapStatistic("energy", "", covariance, lambda moments: [float(m.trace()) for m in moments])
slope = GradientStatistic("slope", "", lambda found: found.sums.gradient_norms)
sound = Proxy.of(energy, recipe=RECIPE, formula="sum of the maps' variances", paper="mine")
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("(sound, 3)", r"offers 3 \(my_nas:OFFERED\), but a proxy must be a zcpipe.proxies.Proxy"),
        ("Proxy", "a proxy must be a zcpipe.proxies.Proxy"),
        ("energy", "offers 'energy' .* a proxy must be a zcpipe.proxies.Proxy"),
        ("replace(sound, name='')", "its name must be made of .*, got ''"),
        ("replace(sound, name=None)", "its name must be a text, got None"),
        ("replace(sound, name='a,b')", "its name must be made of .*, got 'a,b'"),
        ("replace(sound, name='a/b')", "its name must be made of .*, got 'a/b'"),
        ("replace(sound, name='-a')", "its name must be made of .*, got '-a'"),
        ("replace(sound, name='arch')", "its name 'arch' stands for something else already; give another"),
        ("replace(sound, name='Failures')", "its name 'Failures' stands for something else already"),
        ("replace(sound, name='aznas')", "its name 'aznas' stands for something else already"),
        ("replace(sound, name='energy_sd')", "its name must not end in _sd"),
        ("replace(sound, direction='up')", "'energy' .* its direction must be one of higher, lower, none, got 'up'"),
        ("replace(sound, scope='all')", "its scope must be one of function, full, got 'all'"),
        ("replace(sound, cost=['cheap'])", r"its cost must be one of static, .*, got \['cheap'\]"),
        ("replace(sound, unit=None)", "its unit must be a text, got None"),
        ("replace(sound, unit=None, reduce=3)", "its reduce must be a function, got 3"),
        ("replace(sound, targets='yes')", "its targets must be True or False, got 'yes'"),
        ("replace(sound, paper=None)", "its paper must be a text, got None"),
        ("replace(sound, paper='')", "its paper must be a text that is not empty, got ''"),
        ("replace(sound, formula=' ')", "its formula must be a text that is not empty, got ' '"),
        ("replace(sound, statistics=())", "its recipe must be None, since it reads no statistics, got a Recipe"),
        ("replace(sound, recipe=None)", "its recipe must be a Recipe, since it reads statistics, got None"),
        ("replace(sound, recipe='noise')", "its recipe must be a Recipe or None, got 'noise'"),
        (
            "replace(sound, recipe=replace(RECIPE, init='xavier'))",
            "init of its recipe must be .*, got 'xavier'",
        ),
        (
            "replace(sound, recipe=replace(RECIPE, absolute=1))",
            "absolute of its recipe must be True or .*, got 1",
        ),
        ("replace(sound, recipe=replace(RECIPE, absolute=True))", "of the kinds GradientStatistic, .*, got 'energy'"),
        *(
            (
                f"replace(sound, recipe=replace(RECIPE, {part}))",
                f"under its recipe's {part} its statistics must be .*'energy'",
            )
            for part in ("norm='sample'", "inputs='none'")
        ),
        ("replace(sound, recipe=replace(RECIPE, norm='drop'))", "norm='drop' goes with absolute=True alone"),
        ("replace(sound, recipe=replace(RECIPE, inputs='ones'))", "inputs='ones' goes with absolute=True alone"),
        *(
            (
                f"replace(sound, statistics=(slope,), recipe=Recipe('default', '{inputs}', '{norm}', absolute=True))",
                f"absolute=True goes with inputs='ones' and .* got inputs='{inputs}' and norm='{norm}'",
            )
            for inputs, norm in (("data", "batch"), ("noise", "drop"), ("ones", "running"))
        ),
        ("replace(sound, statistics=energy)", "its statistics must be a tuple, got MapStatistic"),
        ("replace(sound, statistics=(energy, 3))", "its statistics must be of the kinds MapStatistic, .*, got 3"),
        ("replace(sound, statistics=(energy, energy))", "must have different names, got 'energy' twice"),
        ("replace(sound, statistics=(replace(energy, name='a b'),))", "name of a statistic must be .*, got 'a b'"),
        (
            "replace(sound, statistics=(replace(energy, finish=1),))",
            "finish of its statistic 'energy' must be a func",
        ),
        (
            "replace(sound, statistics=(CustomStatistic('e', '', 'edge', print),))",
            "node of its statistic 'e' must be .*, got 'edge'",
        ),
    ],
)
def test_what_is_no_proxy_is_refused_by_one_line(source, said, tmp_path):
    source = f"{SOURCE}OFFERED = {source}\n"
    with (
        package_installed(tmp_path, "zcpipe.proxies", source),
        pytest.raises(CapabilityError, match=said) as refused,
    ):
        list_proxies()
    assert str(refused.value).startswith("the installed package 'my-nas' offers ")
    assert str(refused.value).endswith("; mend or uninstall the package") and "\n" not in str(refused.value)


def test_sound_proxies_are_taken(tmp_path):
    source = f"{SOURCE}OFFERED = (sound, replace(sound, name='energy-2.0_of'))\n"
    with package_installed(tmp_path, "zcpipe.proxies", source):
        assert get_proxy("energy-2.0_of").statistics == get_proxy("energy").statistics
