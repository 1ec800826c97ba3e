terraform {
  required_version = ">= 1.9, < 2.0"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "6.35.0"
    }
    helm = {
      source  = "hashicorp/helm"
      version = "3.0.2"
    }
  }
}

provider "google" {
  project = var.project_id
}

provider "helm" {
  kubernetes = {
    host                   = "https://${google_container_cluster.embedkeep.endpoint}"
    token                  = data.google_client_config.current.access_token
    cluster_ca_certificate = base64decode(google_container_cluster.embedkeep.master_auth[0].cluster_ca_certificate)
  }
}
