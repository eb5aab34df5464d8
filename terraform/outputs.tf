output "url" {
  description = "Address of the HTTP service: the page, and POST /segment."
  value       = google_cloud_run_v2_service.segment["http"].uri
}

output "input_bucket" {
  description = "Bucket for photos."
  value       = local.input_bucket_ready
}

output "output_bucket" {
  description = "Bucket for results."
  value       = local.output_bucket_ready
}

output "repository" {
  description = "Repository to which images are pushed; null if it was not created."
  value       = var.create_repository ? "${var.region}-docker.pkg.dev/${var.project_id}/${google_artifact_registry_repository.images[0].repository_id}" : null
}

output "services" {
  description = "Names of the two services: http and events."
  value       = { for key, service in google_cloud_run_v2_service.segment : key => service.name }
}

output "backfill_job" {
  description = "Job that segments photos that were in the bucket before: gcloud run jobs execute NAME."
  value       = google_cloud_run_v2_job.backfill.name
}

output "dead_letters" {
  description = "Subscription that contains the dead letters."
  value       = google_pubsub_subscription.dead.name
}

output "service_accounts" {
  description = "Service accounts of the HTTP service (http), of the events service and the job (bucket), and of Pub/Sub's calls (push)."
  value = {
    http   = google_service_account.http.email
    bucket = google_service_account.bucket.email
    push   = google_service_account.push.email
  }
}
