import dask
import pytest

from dask_pools import data_centres
from dask_pools.errors import UnlocatedError
from intake_pools.locate import Location, locate

FILE = """\
data_centres:
  ecmwf:
    prefixes: [/data/ecmwf/, "s3://ecmwf-"]
  eumetsat:
    prefixes: [/data/eumetsat/]
"""
RULES = data_centres.parse(FILE, "data-centres.yaml")


def test_an_answer_carries_its_evidence():
    assert locate("/data/ecmwf/a.nc", data_centres=RULES) == Location(
        "ecmwf", "prefix /data/ecmwf/ (data-centres.yaml, line 3)"
    )


def test_the_entrys_own_word_beats_the_rules():
    assert locate("/data/ecmwf/a.nc", "eumetsat", RULES) == Location(
        "eumetsat", "stated by data_centre of the entry"
    )


def test_a_stated_name_that_the_rules_do_not_know_is_a_mistake():
    with pytest.raises(UnlocatedError) as caught:
        locate("a.nc", "eumetsta", RULES)
    assert str(caught.value) == (
        "data_centre of the entry states the data centre 'eumetsta', which data-centres.yaml does not know. "
        "Did you mean 'eumetsat'? It knows: ecmwf, eumetsat."
    )


def test_without_rules_any_proper_name_will_do():
    assert locate("a.nc", "anywhere").data_centre == "anywhere"
    with pytest.raises(UnlocatedError, match="'any where' cannot be the name of a pool"):
        locate("a.nc", "any where")


def test_what_no_rule_hosts_is_an_error_with_the_prefixes_and_the_nearest():
    with pytest.raises(UnlocatedError) as caught:
        locate("/data/ecmfw/a.nc", data_centres=RULES)
    assert str(caught.value) == (
        "No data centre hosts /data/ecmfw/a.nc. Prefixes in data-centres.yaml: /data/ecmwf/ (ecmwf); "
        "s3://ecmwf- (ecmwf); /data/eumetsat/ (eumetsat). The nearest is /data/ecmwf/ of ecmwf. Add a prefix "
        "there, or state the data centre with data_centre=."
    )


def test_a_relative_path_needs_a_stated_data_centre():
    with pytest.raises(
        UnlocatedError, match=r"a.nc is a relative path, which no prefix can match.*data_centre="
    ):
        locate("a.nc", data_centres=RULES)


def test_without_any_rules_the_error_says_how_to_give_some():
    with pytest.raises(
        UnlocatedError, match=r"there is no data-centres file. State one with data_centre=, or"
    ):
        locate("/data/a.nc")


def test_the_default_rules_are_those_of_the_setting(tmp_path):
    path = tmp_path / "data-centres.yaml"
    path.write_text("data_centres: {here: {prefixes: [/data]}}")
    with dask.config.set({"pools.data-centres": str(path)}):
        assert locate("/data/a.nc").data_centre == "here"


def test_secrets_of_a_url_are_not_in_the_message():
    with pytest.raises(UnlocatedError) as caught:
        locate("https://me:hush@example.org/a.nc?X-Amz-Signature=hush&x=1", data_centres=RULES)
    assert "hush" not in str(caught.value)
    assert "https://example.org/a.nc" in str(caught.value)
