output "bucket" {
  description = "Name of the bucket."
  value       = var.create_bucket ? aws_s3_bucket.this[0].id : var.bucket
}

output "store_url" {
  description = "What `alluvium serve --store` takes, and every other command."
  value       = local.store_url
}

output "region" {
  description = "Region of the bucket, for AWS_REGION."
  value       = local.region
}

output "policy_arns" {
  description = "Policies for whoever else runs brokers or commands on the bucket: an instance's role, or a user."
  value       = concat([aws_iam_policy.store.arn], aws_iam_policy.key[*].arn)
}

output "role_arn" {
  description = "Role of the brokers, for the annotation eks.amazonaws.com/role-arn; null without IRSA and Pod Identity."
  value       = one(aws_iam_role.this[*].arn)
}

output "bootstrap" {
  description = "Where clients in the Kubernetes cluster connect; null without the Helm release."
  value       = one([for release in helm_release.this : "${release.name}.${release.namespace}.svc:9092"])
}
