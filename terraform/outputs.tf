output "cluster" {
  description = "Name of the cluster."
  value       = google_container_cluster.embedkeep.name
}

output "get_credentials" {
  description = "Command that has kubectl know the cluster."
  value       = "gcloud container clusters get-credentials ${google_container_cluster.embedkeep.name} --location ${var.location} --project ${var.project_id}"
}

output "workload_pool" {
  description = "Workload identity pool of the cluster's service accounts."
  value       = local.workload_pool
}

output "machines_service_account" {
  description = "Whom machines pull images as: let it read a registry of another project."
  value       = google_service_account.machines.email
}

output "operator_namespace" {
  description = "Where the operator runs."
  value       = helm_release.operator.namespace
}
