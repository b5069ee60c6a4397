# One small image for every role: `millrace collect`, `process`, `deliver`, `migrate`.

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/millrace
COPY requirements.lock pyproject.toml ./
# Of the lock, what the product runs on and no development tool; every file by its hash.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > runtime.in \
 && echo setuptools > build.in \
 && /opt/millrace/bin/pip install --no-cache-dir --require-hashes -c requirements.lock -r runtime.in \
 && pip install --no-cache-dir --require-hashes -c requirements.lock -r build.in
COPY LICENSE README.md ./
COPY schemas schemas
COPY collector collector
COPY pipeline pipeline
COPY destinations destinations
COPY millrace millrace
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/millrace/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/millrace/bin/pip uninstall --yes pip

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin millrace \
 && install -d -o millrace -g millrace /data /etc/millrace
COPY --from=build /opt/millrace /opt/millrace
ENV PATH=/opt/millrace/bin:$PATH PYTHONUNBUFFERED=1 MILLRACE_HOST=0.0.0.0 MILLRACE_DATA=/data
# A `millrace.yaml` mounted here is read.
WORKDIR /etc/millrace
USER 10001
VOLUME /data
EXPOSE 8080
CMD ["millrace", "up"]
