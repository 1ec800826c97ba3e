variable "project_id" {
  description = "Google Cloud project that everything is made in."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id: 6 to 30 of a-z, 0-9 and -, beginning with a letter."
  }
}

variable "location" {
  description = "Zone (europe-west4-a) or region (europe-west4) of the cluster. A region has three of every machine, and a control plane that survives a zone."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+(-[a-z])?$", var.location))
    error_message = "location: a zone such as europe-west4-a, or a region such as europe-west4."
  }
}

variable "name" {
  description = "Name of the cluster, and the beginning of all other names."
  type        = string
  default     = "embedkeep"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name: 2 to 20 of a-z, 0-9 and -, beginning with a letter: a service account's name is made from it."
  }
}

variable "network" {
  description = "VPC network and subnetwork, which must exist."
  type = object({
    network    = optional(string, "default")
    subnetwork = optional(string, "default")
  })
  default = {}
}

variable "authorized_networks" {
  description = "Address ranges (CIDR) that may reach the API server, by a name for each. Empty: all, who still must log in."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for range in values(var.authorized_networks) : can(cidrhost(range, 0))])
    error_message = "authorized_networks: each value is a range such as 203.0.113.0/24."
  }
}

variable "deletion_protection" {
  description = "True: `terraform destroy` refuses to delete the cluster until this was set to false and applied."
  type        = bool
  default     = true
}

variable "cpu_pool" {
  description = "Machines of the operator, the nodes and embedders without GPU. Counts are of the whole pool, over all zones."
  type = object({
    machine_type = optional(string, "n2-standard-4")
    min_nodes    = optional(number, 1)
    max_nodes    = optional(number, 6)
    disk_gb      = optional(number, 50)
  })
  default = {}

  validation {
    condition     = var.cpu_pool.min_nodes >= 1 && var.cpu_pool.min_nodes <= var.cpu_pool.max_nodes
    error_message = "cpu_pool: 1 <= min_nodes <= max_nodes; the operator needs a machine to run on."
  }
  validation {
    condition     = var.cpu_pool.disk_gb >= 30
    error_message = "cpu_pool.disk_gb: 30 at least, for the system and the images."
  }
}

variable "gpu_pool" {
  description = "Machines of embedders with a GPU. None is kept while no pod asks for one. spot: cheaper, and taken back at any time; the cache answers hits meanwhile. zones: those that have the GPU; empty: the cluster's. Null: no such pool."
  type = object({
    machine_type     = optional(string, "g2-standard-4")
    accelerator      = optional(string, "nvidia-l4")
    gpus_per_machine = optional(number, 1)
    max_nodes        = optional(number, 2)
    disk_gb          = optional(number, 100)
    spot             = optional(bool, false)
    zones            = optional(list(string), [])
  })
  default = {}

  validation {
    condition     = var.gpu_pool == null ? true : contains([1, 2, 4, 8], var.gpu_pool.gpus_per_machine)
    error_message = "gpu_pool.gpus_per_machine: 1, 2, 4 or 8, as the machine type has."
  }
  validation {
    condition     = var.gpu_pool == null ? true : var.gpu_pool.max_nodes >= 1 && var.gpu_pool.disk_gb >= 50
    error_message = "gpu_pool: max_nodes 1 at least, disk_gb 50 at least; for no pool set gpu_pool to null."
  }
}

variable "model_readers" {
  description = "Buckets with models, and the caches that may read them through GKE's workload identity: the service account of an EmbeddingCache has its name."
  type = list(object({
    bucket    = string
    namespace = string
    cache     = string
  }))
  default = []
}

variable "operator" {
  description = "The chart: its folder or OCI reference, version (of a reference; null: the folder's), namespace, operators at once, namespaces looked after (empty: all), and the image's repository where it is mirrored."
  type = object({
    chart            = optional(string)
    chart_version    = optional(string)
    namespace        = optional(string, "embedkeep-system")
    replicas         = optional(number, 2)
    scope            = optional(list(string), [])
    image_repository = optional(string, "docker.io/embedkeep/operator")
  })
  default = {}

  validation {
    condition     = var.operator.replicas >= 0 && var.operator.replicas <= 5
    error_message = "operator.replicas: 0 to 5."
  }
}

variable "prometheus" {
  description = "Prometheus servers that EmbeddingCaches may name in spec.tuning.prometheus: a URL for each name."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for url in values(var.prometheus) : can(regex("^https?://", url))])
    error_message = "prometheus: each value is a URL such as http://prometheus.monitoring:9090."
  }
}

variable "labels" {
  description = "Labels of the cluster and its machines, such as for a bill by team."
  type        = map(string)
  default     = {}
}
