import pytest
import xarray as xr

from dask_pools.errors import EntryError
from intake_pools.entries import entry_of, scrub
from intake_pools.urls import public_options, public_url


def entry(urlpath="a.nc", **kwargs):
    return entry_of(urlpath, data_centre="ecmwf", **kwargs)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("predictions.nc", "predictions.nc"),
        ("/data//x//a.nc", "/data/x/a.nc"),
        ("file:///data/a.nc", "/data/a.nc"),
        ("s3://bucket/x//a.nc", "s3://bucket/x//a.nc"),
        ("simplecache::s3://bucket/a.nc", "simplecache::s3://bucket/a.nc"),
    ],
)
def test_paths_stay_as_they_are_but_for_double_slashes(given, kept):
    assert entry(given).urls == (kept,)


def test_the_name_is_the_last_part_of_the_path_unless_said():
    assert entry("/data/a.nc").name == "a.nc"
    assert entry("s3://bucket/x.zarr/").name == "x.zarr"
    assert entry("/data/a.nc", name="winds").name == "winds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"urlpath": 3}, "urlpath of an entry has 3; it should be a path or URL"),
        ({"urlpath": ""}, "urlpath of an entry has ''; it should be a path or URL"),
        ({"urlpath": []}, "urlpath of an entry is an empty list"),
        ({"chunks": "big"}, "chunks of a.nc is 'big'; it should be a mapping of dimensions to sizes"),
        ({"chunks": {"time": True}}, "chunks of a.nc has 'time': True; it should be a number"),
        ({"xarray_kwargs": ["a"]}, r"xarray_kwargs of a.nc is \['a'\]; it should be a mapping"),
        ({"storage_options": "anon"}, "storage_options of a.nc is 'anon'; it should be a mapping"),
        ({"xarray_kwargs": {"chunks": {}}}, "xarray_kwargs of a.nc has 'chunks': give `chunks` beside"),
        ({"xarray_kwargs": {"cache": True}}, "xarray_kwargs of a.nc has 'cache': data stays on the workers"),
        ({"xarray_kwargs": {"engine": 3}}, "engine of a.nc is 3; it should be the name of one"),
        ({"version": {}}, "version of a.nc is {}; it should be a word or a number"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named_with_what_it_should_be(arguments, message):
    with pytest.raises(EntryError, match=message):
        entry(**arguments)


RULES = {
    "data_centres": {
        "a": {"prefixes": ["/a", "s3://a-"]},
        "b": {"prefixes": ["/b"], "residency": "stay"},
        "c": {"endpoints": ["https://c.example.org"]},
    }
}


def places(several):
    return [(one.urls, one.location.data_centre, one.residency) for one in several]


def test_urls_in_several_data_centres_make_parts_in_their_order():
    made = entry_of(["/a/x.nc", "/a/y.nc", "/b/z.nc", "/a/w.nc"], data_centres=RULES)
    assert places(made.parts) == [
        (("/a/x.nc", "/a/y.nc"), "a", None),
        (("/b/z.nc",), "b", "stay"),
        (("/a/w.nc",), "a", None),
    ]
    assert made.urls == ("/a/x.nc", "/a/y.nc", "/b/z.nc", "/a/w.nc")
    assert {part.name for part in made.parts} == {"x.nc"}
    assert not entry_of(["/a/x.nc", "/a/y.nc"], data_centres=RULES).parts


def test_parts_may_differ_in_where_they_are_said_to_live_and_in_options():
    at_c = {"client_kwargs": {"endpoint_url": "https://c.example.org/"}}
    made = entry_of(
        parts=[
            "/a/x.nc",
            {"urlpath": "s3://a-/y.nc", "storage_options": at_c},
            {"urlpath": "z.nc", "data_centre": "b"},
        ],
        data_centres=RULES,
        residency="free",
    )
    assert places(made.parts) == [
        (("/a/x.nc",), "a", None),
        (("s3://a-/y.nc",), "c", None),
        (("z.nc",), "b", None),
    ]


def test_replicas_are_whole_entries_the_first_one_included():
    made = entry_of(
        "/a/x.nc",
        chunks={"time": 1},
        replicas=["/b/x.nc", {"parts": ["/a/1.nc", "/b/2.nc"]}],
        data_centres=RULES,
    )
    assert places(made.replicas[:2]) == [(("/a/x.nc",), "a", None), (("/b/x.nc",), "b", "stay")]
    assert places(made.replicas[2].parts) == [(("/a/1.nc",), "a", None), (("/b/2.nc",), "b", "stay")]
    assert all(one.chunks == {"time": 1} and not one.replicas for one in made.replicas)
    assert entry_of(replicas=["/b/x.nc"], data_centres=RULES).location.data_centre == "b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": "/a/x.nc"}, "parts of an entry is '/a/x.nc'; it should be a list of URLs"),
        ({"replicas": []}, r"replicas of an entry is \[\]; it should be a list"),
        ({"parts": [{"urls": 1}]}, "parts of an entry has 'urls', which is none of: urlpath, data_centre"),
        ({"urlpath": "/a/x", "parts": ["/b/y"]}, "has both urlpath and parts"),
        ({"urlpath": "/a/x", "residency": "go"}, "residency of x is 'go'; it should be 'stay'"),
        ({}, "urlpath of an entry has None; it should be a path or URL"),
    ],
)  # fmt: skip
def test_wrong_parts_and_replicas_are_named_with_what_they_should_be(arguments, message):
    with pytest.raises(EntryError, match=message):
        entry_of(**arguments, data_centres=RULES)


def test_an_engine_of_the_users_beats_the_drivers():
    assert entry(engine="netcdf", xarray_kwargs={"engine": "h5netcdf"}).engine == "h5netcdf"


def test_what_combines_files_is_kept_apart_from_what_opens_one():
    made = entry(
        xarray_kwargs={"combine": "nested", "concat_dim": "t", "decode_times": False, "parallel": True}
    )
    assert made.combining == {"combine": "nested", "concat_dim": "t"}
    assert made.xarray_kwargs == {"decode_times": False}


SECRETS = {
    "key": "hush-1",
    "secret": "hush-2",
    "anon": False,
    "username": "hush-3",
    "client_kwargs": {"endpoint_url": "http://me:hush-4@host:1", "aws_session_token": "hush-5"},
    "headers": {"Authorization": "hush-6"},
    "connection_string": "AccountKey=hush-7",
    "default_block_size": 100,
    "filesystem": object(),
}


def test_options_are_shown_without_secrets():
    shown = public_options({key: value for key, value in SECRETS.items() if key != "connection_string"})
    assert "hush" not in str(shown)
    assert shown["anon"] is False
    assert shown["default_block_size"] == 100
    assert shown["client_kwargs"]["endpoint_url"] == "http://host:1"
    assert shown["filesystem"] == "object"


def test_what_a_name_is_made_of_has_its_objects_and_no_secrets():
    coder = xr.coders.CFDatetimeCoder(use_cftime=True)
    kept = public_options({"decode_times": coder, "backend_kwargs": {"token": "hush"}}, objects=True)
    assert kept["decode_times"] is coder
    assert "hush" not in str(kept)


def test_a_connection_string_is_a_secret():
    assert "hush" not in str(public_options(SECRETS))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/data/a@b/c.nc", "/data/a@b/c.nc"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("simplecache::https://me:pw@host/a?sig=1&x=2", "simplecache::https://host/a?sig=***&x=2"),
        ("https://host/a?X-Amz-Credential=q&v=1", "https://host/a?X-Amz-Credential=***&v=1"),
    ],
)
def test_urls_are_shown_without_secrets(url, shown):
    assert public_url(url) == shown


def test_no_representation_of_an_entry_has_its_secrets():
    made = entry("https://me:hush-0@host/a.nc", storage_options=SECRETS)
    assert "hush" not in repr(made)
    assert "hush" not in made.shown


def test_secrets_are_taken_out_of_what_others_say():
    made = entry("https://me:hush-0@host/a.nc", storage_options=SECRETS)
    text = "cannot open https://me:hush-0@host/a.nc with {'key': 'hush-1', 'token': 'hush-5'}"
    assert "hush" not in scrub(text, made)
