# A worker in a container: Python and this package, put in from wheels. Nothing is fetched while it is built, and
# nothing of the checkout gets in: the directory of wheels is all that Docker is given.
#
#     pip wheel --wheel-dir wheelhouse .
#     docker build --tag intake-pools --build-arg BASE=python:3.11-slim --file Dockerfile wheelhouse
#
# BASE needs Python with venv, of the minor version for which the wheels are and which client and scheduler have:
# Dask sends code as it was compiled.
ARG BASE=python:3.11-slim
FROM ${BASE}
COPY *.whl /wheelhouse/
# Modules are compiled here, once: whose the workers are may not write beside them.
RUN python3 -m venv /opt/intake-pools && \
    /opt/intake-pools/bin/pip install --no-cache-dir --no-index --find-links /wheelhouse intake-pools
ENV PATH=/opt/intake-pools/bin:$PATH
# Nobody, unless the launcher says who.
USER 65534:65534
