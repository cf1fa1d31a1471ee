"""`dask pools demo`: the main job on two sites of one machine, from laying out their data to a map.

Imports nothing here: its workers start through `isolation`, and need none of the rest.
"""
