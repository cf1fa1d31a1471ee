"""Public catalogues, as their owners published them, with one data-centres file and no edit."""

import pytest
from published import PUBLISHED, needs_published

from dask_pools import data_centres
from dask_pools.errors import EntryError, UnlocatedError
from intake_pools import open_catalog
from intake_pools.locate import locate

RULES = """\
data_centres:
  gcp-us-central1:
    prefixes: [gs://pangeo-cnes, gs://pangeo-cesm-, gs://pangeo-ecco-, gs://cmip6/GFDL_CM2_6]
    globs: ["gs://pangeo-n*/"]
  osn-ncsa:
    endpoints: [https://ncsa.osn.xsede.org]
  aws-us-west-2:
    prefixes: [s3://pangeo-nldas-hru-forcing, s3://Pangeo/]
  ifremer:
    globs: ["gs://pangeo-meom/NATL60-*/"]
  columbia:
    prefixes: [gs://pangeo-ldeo-mitgcm/]
  meom:
    prefixes: [gs://pangeo-meom, gs://pangeo-cmems-duacs, gs://pangeo-cgiar-pet, gs://pangeo-era5]
  vulcan:
    globs: ["gs://*-vulcan-*/"]
"""
KNOWN = data_centres.parse(RULES, "rules.yaml")
CNES = ("gcp-us-central1", "prefix gs://pangeo-cnes (rules.yaml, line 3)")
ECCO = ("gcp-us-central1", "prefix gs://pangeo-ecco- (rules.yaml, line 3)")
CESM = ("gcp-us-central1", "prefix gs://pangeo-cesm- (rules.yaml, line 3)")
GFDL = ("gcp-us-central1", "prefix gs://cmip6/GFDL_CM2_6 (rules.yaml, line 3)")
N = ("gcp-us-central1", "glob gs://pangeo-n*/ (rules.yaml, line 4)")
OSN = ("osn-ncsa", "endpoint https://ncsa.osn.xsede.org (rules.yaml, line 6)")
AWS = ("aws-us-west-2", "prefix s3://pangeo-nldas-hru-forcing (rules.yaml, line 8)")
NATL = ("ifremer", "glob gs://pangeo-meom/NATL60-*/ (rules.yaml, line 10)")
LDEO = ("columbia", "prefix gs://pangeo-ldeo-mitgcm/ (rules.yaml, line 12)")
MEOM = ("meom", "prefix gs://pangeo-meom (rules.yaml, line 14)")
VULCAN = ("vulcan", "glob gs://*-vulcan-*/ (rules.yaml, line 16)")
NOWHERE = None


def meom(name):
    return ("meom", f"prefix gs://pangeo-{name} (rules.yaml, line 14)")


PANGEO = {
    "ocean.sea_surface_height": ("gs://pangeo-cmems-duacs", meom("cmems-duacs")),
    "ocean.cesm_mom6_example": ("gs://pangeo-cesm-mom6", CESM),
    "ocean.ECCOv4r3": ("gs://pangeo-ecco-eccov4r3/eccov4r3", ECCO),
    "ocean.SOSE": ("gs://pangeo-ecco-sose", ECCO),
    "ocean.GODAS": ("gs://pangeo-ncep-godas", N),
    "ocean.ECCO_layers": ("gs://pangeo-ecco-eccov4r3/layers", ECCO),
    "ocean.altimetry.al": ("gs://pangeo-cnes/alti/al", CNES),
    "ocean.altimetry.alg": ("gs://pangeo-cnes/alti/alg", CNES),
    "ocean.altimetry.c2": ("gs://pangeo-cnes/alti/c2", CNES),
    "ocean.altimetry.e1": ("gs://pangeo-cnes/alti/e1", CNES),
    "ocean.altimetry.e1g": ("gs://pangeo-cnes/alti/e1g", CNES),
    "ocean.altimetry.e2": ("gs://pangeo-cnes/alti/e2", CNES),
    "ocean.altimetry.en": ("gs://pangeo-cnes/alti/en", CNES),
    "ocean.altimetry.enn": ("gs://pangeo-cnes/alti/enn", CNES),
    "ocean.altimetry.g2": ("gs://pangeo-cnes/alti/g2", CNES),
    "ocean.altimetry.h2": ("gs://pangeo-cnes/alti/h2", CNES),
    "ocean.altimetry.j1": ("gs://pangeo-cnes/alti/j1", CNES),
    "ocean.altimetry.j1g": ("gs://pangeo-cnes/alti/j1g", CNES),
    "ocean.altimetry.j1n": ("gs://pangeo-cnes/alti/j1n", CNES),
    "ocean.altimetry.j2": ("gs://pangeo-cnes/alti/j2", CNES),
    "ocean.altimetry.j2g": ("gs://pangeo-cnes/alti/j2g", CNES),
    "ocean.altimetry.j2n": ("gs://pangeo-cnes/alti/j2n", CNES),
    "ocean.altimetry.j3": ("gs://pangeo-cnes/alti/j3", CNES),
    "ocean.altimetry.s3a": ("gs://pangeo-cnes/alti/s3a", CNES),
    "ocean.altimetry.s3b": ("gs://pangeo-cnes/alti/s3b", CNES),
    "ocean.altimetry.tp": ("gs://pangeo-cnes/alti/tp", CNES),
    "ocean.altimetry.tpn": ("gs://pangeo-cnes/alti/tpn", CNES),
    "ocean.LLC4320.LLC4320_grid": ("gs://pangeo-ecco-llc4320/grid", ECCO),
    "ocean.LLC4320.LLC4320_SST": ("gs://pangeo-ecco-llc4320/sst", ECCO),
    "ocean.LLC4320.LLC4320_SSS": ("gs://pangeo-ecco-llc4320/sss", ECCO),
    "ocean.LLC4320.LLC4320_SSH": ("gs://pangeo-ecco-llc4320/ssh", ECCO),
    "ocean.LLC4320.LLC4320_SSU": ("gs://pangeo-ecco-llc4320/ssu", ECCO),
    "ocean.LLC4320.LLC4320_SSV": ("gs://pangeo-ecco-llc4320/ssv", ECCO),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean": ("gs://cmip6/GFDL_CM2_6/control/ocean", GFDL),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_surface": ("gs://cmip6/GFDL_CM2_6/control/surface", GFDL),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_3D": ("gs://cmip6/GFDL_CM2_6/control/ocean_3d", GFDL),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_transport": (
        "gs://cmip6/GFDL_CM2_6/control/ocean_transport",
        GFDL,
    ),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_boundary_flux": (
        "gs://cmip6/GFDL_CM2_6/control/ocean_boundary",
        GFDL,
    ),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_budgets": (
        "gs://cmip6/GFDL_CM2_6/control/ocean_budgets",
        GFDL,
    ),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean": ("gs://cmip6/GFDL_CM2_6/one_percent/ocean", GFDL),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_surface": (
        "gs://cmip6/GFDL_CM2_6/one_percent/surface",
        GFDL,
    ),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_3D": ("gs://cmip6/GFDL_CM2_6/one_percent/ocean_3d", GFDL),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_transport": (
        "gs://cmip6/GFDL_CM2_6/one_percent/ocean_transport",
        GFDL,
    ),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_boundary_flux": (
        "gs://cmip6/GFDL_CM2_6/one_percent/ocean_boundary",
        GFDL,
    ),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_budgets": (
        "gs://cmip6/GFDL_CM2_6/one_percent/ocean_budgets",
        GFDL,
    ),
    "ocean.GFDL_CM2_6.GFDL_CM2_6_grid": ("gs://cmip6/GFDL_CM2_6/grid", GFDL),
    "ocean.CESM_POP.CESM_POP_hires_control": ("gs://pangeo-cesm-pop/control", CESM),
    "ocean.CESM_POP.CESM_POP_hires_RCP8_5": ("gs://pangeo-cesm-pop/rcp8v5", CESM),
    "ocean.channel.MITgcm_channel_flatbottom_02km_run01_phys-mon": ("gs://pangeo-ldeo-mitgcm/mon", LDEO),
    "ocean.channel.MITgcm_channel_flatbottom_02km_run01_phys_snap15D": (
        "gs://pangeo-ldeo-mitgcm/snap15d",
        LDEO,
    ),
    "ocean.channel.channel_ridge_resolutions_01km": (
        "gs://pangeo-ldeo-mitgcm/channel_ridge_resolutions/01km/tracer_10day_snap",
        LDEO,
    ),
    "ocean.channel.channel_ridge_resolutions_05km": (
        "gs://pangeo-ldeo-mitgcm/channel_ridge_resolutions/05km/tracer_10day_snap",
        LDEO,
    ),
    "ocean.channel.channel_ridge_resolutions_20km": (
        "gs://pangeo-ldeo-mitgcm/channel_ridge_resolutions/20km/tracer_10day_snap",
        LDEO,
    ),
    "ocean.channel.run_tracers_restored_zarr": ("gs://pangeo-ldeo-mitgcm/run_tracers_restored_zarr", LDEO),
    "ocean.channel.channel_ridge_05km_float_run": (
        "gs://pangeo-ldeo-mitgcm/channel_floats/channel_model_vars",
        LDEO,
    ),
    "ocean.channel.channel_ridge_05km_floats": (
        "gs://pangeo-ldeo-mitgcm/channel_floats/channel_float_vars",
        LDEO,
    ),
    "ocean.MEOM_NEMO.NATL60_coord": ("gs://pangeo-meom/NATL60-I/NATL60-byte-mask", NATL),
    "ocean.MEOM_NEMO.NATL60_horizontal_grid": ("gs://pangeo-meom/NATL60-I/NATL60-mesh-hgr", NATL),
    "ocean.MEOM_NEMO.NATL60_vertical_grid": ("gs://pangeo-meom/NATL60-I/NATL60-mesh-zgr", NATL),
    "ocean.MEOM_NEMO.NATL60_SSH": ("gs://pangeo-meom/NATL60-CJM165-SSH-1h-2D", NATL),
    "ocean.MEOM_NEMO.NATL60_SSH_1": ("gs://pangeo-meom/NATL60-CJM165-SSH-1h-1m2deg2deg", NATL),
    "ocean.MEOM_NEMO.NATL60_SSU": ("gs://pangeo-meom/NATL60-CJM165-SSU-1h-1m2deg2deg", NATL),
    "ocean.MEOM_NEMO.NATL60_SSV": ("gs://pangeo-meom/NATL60-CJM165-SSV-1h-1m2deg2deg", NATL),
    "ocean.MEOM_NEMO.eNATL60_grid": ("gs://pangeo-meom/eNATL60-I/eNATL60-mesh-mask", MEOM),
    "ocean.MEOM_NEMO.eNATL60_BLBT02_SSH": ("gs://pangeo-meom/eNATL60-BLBT02-SSH-1h", MEOM),
    "ocean.MEOM_NEMO.eNATL60_BLBT02_SSU": ("gs://pangeo-meom/eNATL60-BLBT02-SSU-1h", MEOM),
    "ocean.MEOM_NEMO.eNATL60_BLBT02_SSV": ("gs://pangeo-meom/eNATL60-BLBT02-SSV-1h", MEOM),
    "ocean.MEOM_NEMO.eNATL60_BLB002_SSU": ("gs://pangeo-meom/eNATL60-BLB002-SSU-1h", MEOM),
    "ocean.MEOM_NEMO.eNATL60_BLB002_SSV": ("gs://pangeo-meom/eNATL60-BLB002-SSV-1h", MEOM),
    "atmosphere.gmet_v1": ("gs://pangeo-ncar-gmet", N),
    "atmosphere.trmm_3b42rt": ("gs://pangeo-nasa-trmm", N),
    "atmosphere.sam_ngaqua_qobs_eqx_3d": ("gs://pangeo-vulcan-sam/3d", VULCAN),
    "atmosphere.sam_ngaqua_qobs_eqx_2d": ("gs://pangeo-vulcan-sam/2d", VULCAN),
    "atmosphere.gpcp_cdr_daily_v1_3": ("gs://pangeo-noaa-esrl-gpcp", N),
    "atmosphere.wrf50_erai": ("gs://pangeo-ncar-wrf", N),
    "atmosphere.era5_hourly_reanalysis_single_levels_sa": (
        "gs://pangeo-era5/reanalysis/spatial-analysis",
        meom("era5"),
    ),
    "atmosphere.nasa_ccmp_wind_vectors": ("gs://pangeo-nasa-ccmp/zarr", N),
    "hydro.cgiar_pet": ("gs://pangeo-cgiar-pet", meom("cgiar-pet")),
    "hydro.nldas_hru_forcing": ("s3://pangeo-nldas-hru-forcing", AWS),
    "hydro.usgs_streamflow_observations": ("s3://pangeo-usgs-flow-observations", NOWHERE),
}
SWOT = {
    "GIGATL": ("s3://Pangeo/pangeo-forge/swot_adac/GIGATL/Region01/surf/fma.zarr", OSN),
    "HYCOM25": ("s3://Pangeo/pangeo-forge/swot_adac/HYCOM25/Region01/surface_hourly/fma.zarr", OSN),
    "HYCOM50": ("s3://Pangeo/pangeo-forge/swot_adac/HYCOM50/Region01_GS/surf/.zarr", OSN),
    "eNATL60": ("s3://Pangeo/pangeo-forge/swot_adac/eNATL60/Region01/surface_hourly/fma.zarr", OSN),
    "FESOM": ("s3://Pangeo/pangeo-forge/swot_adac/FESOM/surf/fma.zarr", OSN),
    "ORCA36": ("s3://Pangeo/pangeo-forge/swot_adac/orca36/region01-surface_hourly-.zarr", OSN),
    "FIO-COM32": ("s3://Pangeo/pangeo-forge/swot_adac/FIO-COM32/Region01/surface_hourly/fma.zarr", OSN),
}


def located(catalogue, depth=5):
    """URL, data centre and rule of every entry that is opened in a pool."""
    found = {}
    for name, entry in catalogue.walk(depth=depth).items():
        if entry.container != "xarray":
            continue
        source = entry.get()
        try:
            location = source.location
        except UnlocatedError:
            found[name] = source.urlpath, NOWHERE
        else:
            found[name] = source.urlpath, (location.data_centre, location.evidence)
    return found


@pytest.mark.parametrize(("url", "where"), [*PANGEO.values(), *SWOT.values()])
def test_every_url_of_theirs_resolves_by_the_rule_stated(url, where):
    # Also where the catalogues themselves are not at hand.
    options = {"client_kwargs": {"endpoint_url": "https://ncsa.osn.xsede.org"}} if where is OSN else None
    if where is NOWHERE:
        with pytest.raises(UnlocatedError):
            locate(url, data_centres=KNOWN, storage_options=options)
    else:
        location = locate(url, data_centres=KNOWN, storage_options=options)
        assert (location.data_centre, location.evidence) == where


@needs_published
def test_every_netcdf_and_zarr_entry_of_pangeos_datastore_resolves_by_the_rule_stated():
    found = located(open_catalog(PUBLISHED / "pangeo-datastore" / "master.yaml", data_centres=KNOWN))
    assert found == PANGEO
    assert NOWHERE in [where for _, where in found.values()]


@needs_published
def test_every_entry_of_the_ocean_models_for_swot_resolves_by_its_endpoint():
    assert located(open_catalog(PUBLISHED / "swot-adac" / "catalog.yaml", data_centres=KNOWN)) == SWOT


@needs_published
def test_a_bucket_of_the_same_name_at_another_endpoint_is_a_runner_up_at_most():
    catalogue = open_catalog(PUBLISHED / "swot-adac" / "catalog.yaml", data_centres=KNOWN)
    assert catalogue.GIGATL.location.runners_up == ()
    # At the endpoint of nobody's, the bucket's name is all there is to go by.
    elsewhere = catalogue.GIGATL(storage_options={"endpoint_url": "https://elsewhere.example.org"})
    assert elsewhere.data_centre == "aws-us-west-2"


@needs_published
def test_what_is_not_ours_to_open_is_listed_and_says_why():
    catalogue = open_catalog(PUBLISHED / "pangeo-datastore" / "climate.yaml", data_centres=KNOWN)
    assert "cmip6_gcs" in list(catalogue)
    with pytest.raises(EntryError, match=r"cmip6_gcs of .* cannot be used: no driver 'esm_datastore'"):
        catalogue.cmip6_gcs.to_dask()


@needs_published
def test_parameters_are_checked_and_filled_in():
    catalogue = open_catalog(PUBLISHED / "swot-adac" / "catalog.yaml", data_centres=KNOWN)
    assert (
        catalogue.GIGATL(region="2").urlpath
        == "s3://Pangeo/pangeo-forge/swot_adac/GIGATL/Region02/surf/fma.zarr"
    )
    with pytest.raises(EntryError, match="the parameter 'region' cannot be '7'"):
        catalogue.GIGATL(region="7")


@needs_published
def test_search_list_walk_and_dotted_names_are_intakes():
    catalogue = open_catalog(PUBLISHED / "pangeo-datastore" / "master.yaml", data_centres=KNOWN)
    assert list(catalogue) == ["ocean", "atmosphere", "climate", "hydro"]
    assert catalogue["ocean.altimetry.s3a"].data_centre == "gcp-us-central1"
    assert catalogue["ocean", "altimetry", "s3a"].data_centre == "gcp-us-central1"
    assert catalogue.ocean.altimetry.s3a.describe()["driver"] == "zarr"
    found = catalogue.search("sentinel", depth=4)
    assert sorted(found) == ["ocean.altimetry.s3a", "ocean.altimetry.s3b"]
    assert found["ocean.altimetry.s3a"].data_centre == "gcp-us-central1"
    assert "ocean.altimetry.s3a" in catalogue.walk(depth=5)


@needs_published
def test_a_repr_shows_the_data_centre_of_each_entry():
    catalogue = open_catalog(PUBLISHED / "pangeo-datastore" / "hydro.yaml", data_centres=KNOWN)
    text = repr(catalogue)
    assert "nldas_hru_forcing: aws-us-west-2" in text
    assert "usgs_streamflow_observations: unlocated" in text
    assert "hydrosheds_dir: Intake" in text
    assert "camels: catalogue" in text
    page = catalogue._repr_html_()
    assert "<td>nldas_hru_forcing</td><td>aws-us-west-2</td>" in page
    assert "line 8" in page
