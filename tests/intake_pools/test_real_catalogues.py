"""Public catalogues, as their owners published them, with one data-centres file and no edit."""

import pytest
from published import PUBLISHED, needs_published

from dask_pools import data_centres
from dask_pools.errors import EntryError, UnlocatedError
from intake_pools import open_catalog

pytestmark = needs_published

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
    "ocean.sea_surface_height": meom("cmems-duacs"),
    "ocean.cesm_mom6_example": CESM,
    "ocean.ECCOv4r3": ECCO,
    "ocean.SOSE": ECCO,
    "ocean.GODAS": N,
    "ocean.ECCO_layers": ECCO,
    "ocean.altimetry.al": CNES,
    "ocean.altimetry.alg": CNES,
    "ocean.altimetry.c2": CNES,
    "ocean.altimetry.e1": CNES,
    "ocean.altimetry.e1g": CNES,
    "ocean.altimetry.e2": CNES,
    "ocean.altimetry.en": CNES,
    "ocean.altimetry.enn": CNES,
    "ocean.altimetry.g2": CNES,
    "ocean.altimetry.h2": CNES,
    "ocean.altimetry.j1": CNES,
    "ocean.altimetry.j1g": CNES,
    "ocean.altimetry.j1n": CNES,
    "ocean.altimetry.j2": CNES,
    "ocean.altimetry.j2g": CNES,
    "ocean.altimetry.j2n": CNES,
    "ocean.altimetry.j3": CNES,
    "ocean.altimetry.s3a": CNES,
    "ocean.altimetry.s3b": CNES,
    "ocean.altimetry.tp": CNES,
    "ocean.altimetry.tpn": CNES,
    "ocean.LLC4320.LLC4320_grid": ECCO,
    "ocean.LLC4320.LLC4320_SST": ECCO,
    "ocean.LLC4320.LLC4320_SSS": ECCO,
    "ocean.LLC4320.LLC4320_SSH": ECCO,
    "ocean.LLC4320.LLC4320_SSU": ECCO,
    "ocean.LLC4320.LLC4320_SSV": ECCO,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_surface": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_3D": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_transport": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_boundary_flux": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_control_ocean_budgets": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_surface": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_3D": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_transport": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_boundary_flux": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_one_percent_ocean_budgets": GFDL,
    "ocean.GFDL_CM2_6.GFDL_CM2_6_grid": GFDL,
    "ocean.CESM_POP.CESM_POP_hires_control": CESM,
    "ocean.CESM_POP.CESM_POP_hires_RCP8_5": CESM,
    "ocean.channel.MITgcm_channel_flatbottom_02km_run01_phys-mon": LDEO,
    "ocean.channel.MITgcm_channel_flatbottom_02km_run01_phys_snap15D": LDEO,
    "ocean.channel.channel_ridge_resolutions_01km": LDEO,
    "ocean.channel.channel_ridge_resolutions_05km": LDEO,
    "ocean.channel.channel_ridge_resolutions_20km": LDEO,
    "ocean.channel.run_tracers_restored_zarr": LDEO,
    "ocean.channel.channel_ridge_05km_float_run": LDEO,
    "ocean.channel.channel_ridge_05km_floats": LDEO,
    "ocean.MEOM_NEMO.NATL60_coord": NATL,
    "ocean.MEOM_NEMO.NATL60_horizontal_grid": NATL,
    "ocean.MEOM_NEMO.NATL60_vertical_grid": NATL,
    "ocean.MEOM_NEMO.NATL60_SSH": NATL,
    "ocean.MEOM_NEMO.NATL60_SSH_1": NATL,
    "ocean.MEOM_NEMO.NATL60_SSU": NATL,
    "ocean.MEOM_NEMO.NATL60_SSV": NATL,
    "ocean.MEOM_NEMO.eNATL60_grid": MEOM,
    "ocean.MEOM_NEMO.eNATL60_BLBT02_SSH": MEOM,
    "ocean.MEOM_NEMO.eNATL60_BLBT02_SSU": MEOM,
    "ocean.MEOM_NEMO.eNATL60_BLBT02_SSV": MEOM,
    "ocean.MEOM_NEMO.eNATL60_BLB002_SSU": MEOM,
    "ocean.MEOM_NEMO.eNATL60_BLB002_SSV": MEOM,
    "atmosphere.gmet_v1": N,
    "atmosphere.trmm_3b42rt": N,
    "atmosphere.sam_ngaqua_qobs_eqx_3d": VULCAN,
    "atmosphere.sam_ngaqua_qobs_eqx_2d": VULCAN,
    "atmosphere.gpcp_cdr_daily_v1_3": N,
    "atmosphere.wrf50_erai": N,
    "atmosphere.era5_hourly_reanalysis_single_levels_sa": meom("era5"),
    "atmosphere.nasa_ccmp_wind_vectors": N,
    "hydro.cgiar_pet": meom("cgiar-pet"),
    "hydro.nldas_hru_forcing": AWS,
    "hydro.usgs_streamflow_observations": NOWHERE,
}
SWOT = dict.fromkeys(["GIGATL", "HYCOM25", "HYCOM50", "eNATL60", "FESOM", "ORCA36", "FIO-COM32"], OSN)


def located(catalogue, depth=5):
    """Data centre and rule of every entry that is opened in a pool."""
    found = {}
    for name, entry in catalogue.walk(depth=depth).items():
        if entry.container != "xarray":
            continue
        try:
            location = entry.get().location
        except UnlocatedError:
            found[name] = NOWHERE
        else:
            found[name] = (location.data_centre, location.evidence)
    return found


def test_every_netcdf_and_zarr_entry_of_pangeos_datastore_resolves_by_the_rule_stated():
    found = located(open_catalog(PUBLISHED / "pangeo-datastore" / "master.yaml", data_centres=KNOWN))
    assert found == PANGEO
    assert NOWHERE in found.values()


def test_every_entry_of_the_ocean_models_for_swot_resolves_by_its_endpoint():
    assert located(open_catalog(PUBLISHED / "swot-adac" / "catalog.yaml", data_centres=KNOWN)) == SWOT


def test_a_bucket_of_the_same_name_at_another_endpoint_is_a_runner_up_at_most():
    catalogue = open_catalog(PUBLISHED / "swot-adac" / "catalog.yaml", data_centres=KNOWN)
    assert catalogue.GIGATL.location.runners_up == ()
    # At the endpoint of nobody's, the bucket's name is all there is to go by.
    elsewhere = catalogue.GIGATL(storage_options={"endpoint_url": "https://elsewhere.example.org"})
    assert elsewhere.data_centre == "aws-us-west-2"


def test_what_is_not_ours_to_open_is_listed_and_says_why():
    catalogue = open_catalog(PUBLISHED / "pangeo-datastore" / "climate.yaml", data_centres=KNOWN)
    assert "cmip6_gcs" in list(catalogue)
    with pytest.raises(EntryError, match=r"cmip6_gcs of .* cannot be used: no driver 'esm_datastore'"):
        catalogue.cmip6_gcs.to_dask()


def test_parameters_are_checked_and_filled_in():
    catalogue = open_catalog(PUBLISHED / "swot-adac" / "catalog.yaml", data_centres=KNOWN)
    assert (
        catalogue.GIGATL(region="2").urlpath
        == "s3://Pangeo/pangeo-forge/swot_adac/GIGATL/Region02/surf/fma.zarr"
    )
    with pytest.raises(EntryError, match="the parameter 'region' cannot be '7'"):
        catalogue.GIGATL(region="7")


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
