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

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY gwi_celery ./gwi_celery
RUN pip install --no-cache-dir --prefix=/install '.[http,metrics,otel]'

FROM python:3.12-slim
COPY --from=build /install /usr/local
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin app
WORKDIR /app
RUN chown app:app /app
USER 10001
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    GWI_WORKER_GRACE=8 \
    PORT=8080
EXPOSE 8080
ENTRYPOINT ["celery"]
CMD ["gwi", "serve"]
