# One image for both ways to run an app: push (the default) and pull.
#
#   FROM gwi-celery
#   COPY shop ./shop
#   ENV APP=shop.tasks
#
#   docker run -p 8080:8080 image                        push: Pub/Sub posts to /push
#   docker run image worker --concurrency 1              pull: a worker, with health checks on $PORT
#
# SIGTERM goes to Celery itself (no shell in between): jobs are handed back within ten seconds.

# For builds that are the same tomorrow, name the image by its digest:
#   docker build --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:... .
# where `docker buildx imagetools inspect python:3.12-slim` prints it.

ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY gwi_celery ./gwi_celery
RUN pip install --no-cache-dir --prefix=/install '.[http,metrics,otel]'

FROM ${PYTHON_IMAGE}
COPY --from=build /install /usr/local
# The app's code is not the running user's to change. What embedded:// keeps, and beat's schedule (-s), go to
# /var/lib/gwi.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin app \
    && install -d -o app -g app -m 0700 /var/lib/gwi
WORKDIR /app
USER 10001
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    GWI_FOLDER=/var/lib/gwi \
    GWI_WORKER_GRACE=8 \
    PORT=8080
EXPOSE 8080
ENTRYPOINT ["celery"]
CMD ["gwi", "serve"]
