output "store_url" {
  description = "For the commands: alluvium cluster status URL."
  value       = module.alluvium.store_url
}

output "bootstrap" {
  description = "Where clients in the cluster connect."
  value       = module.alluvium.bootstrap
}

output "role_arn" {
  description = "Role of the brokers."
  value       = module.alluvium.role_arn
}
