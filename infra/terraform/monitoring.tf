# infra/monitoring/build.py makes these files: dashboards, alerts with their runbooks, and metrics made of logs.

locals {
  monitoring = jsondecode(file("${path.module}/../monitoring/alerts.json"))
  named      = { "$subscription" = var.gwi_worker_subscription, "$dead" = local.dead }
  dashboard = replace(replace(
    file("${path.module}/../monitoring/dashboard.json"),
    "$subscription", local.named["$subscription"]), "$dead", local.named["$dead"]
  )
}

resource "google_monitoring_dashboard" "jobs" {
  count          = var.enable_monitoring ? 1 : 0
  project        = var.project
  dashboard_json = local.dashboard

  depends_on = [google_project_service.apis]
}

resource "google_logging_metric" "jobs" {
  for_each    = { for metric in local.monitoring.logs : metric.name => metric if var.enable_monitoring }
  project     = var.project
  name        = each.value.name
  description = each.value.description
  filter      = "(resource.labels.service_name=\"${var.gwi_worker_name}\" OR resource.labels.worker_pool_name=\"${var.gwi_worker_name}\") AND ${each.value.filter}"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"
  }
}

resource "google_monitoring_alert_policy" "jobs" {
  for_each              = { for alert in local.monitoring.alerts : alert.name => alert if var.enable_monitoring }
  project               = var.project
  display_name          = "${var.gwi_worker_name}: ${each.value.name}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = var.notification_channels
  user_labels           = var.labels

  conditions {
    display_name = each.value.name
    condition_prometheus_query_language {
      query = replace(replace(each.value.query,
        "$subscription", local.named["$subscription"]), "$dead", local.named["$dead"]
      )
      duration            = each.value.hold
      evaluation_interval = "60s"
      # Workers that scale to zero export nothing until they run.
      disable_metric_validation = true
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.runbook
  }

  depends_on = [google_project_service.apis, google_logging_metric.jobs]
}
