# One small image for every role: `millrace collect`, `process`, `deliver`, `migrate`.

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/millrace
ENV PATH=/opt/millrace/bin:$PATH
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY LICENSE README.md pyproject.toml ./
COPY tools/unneeded.py tools/unneeded.py
COPY schemas schemas
COPY collector collector
COPY pipeline pipeline
COPY destinations destinations
COPY millrace millrace
# The lock also holds the tools of development; they, and pip with them, stay behind.
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
 && python tools/unneeded.py > unneeded.txt \
 && pip uninstall --yes --quiet -r unneeded.txt

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
