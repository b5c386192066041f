module alluvium/terraform/check

go 1.26.0
