variable "region" {
  description = "Region of the cluster and of the bucket."
  type        = string
  default     = "eu-central-1"
}

variable "cluster" {
  description = "Name of the EKS cluster."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket, which is created."
  type        = string
}

variable "image" {
  description = "Repository of the image, in a registry that the nodes reach."
  type        = string
}

variable "image_tag" {
  description = "Tag of the image. Empty: the version of the chart."
  type        = string
  default     = ""
}
