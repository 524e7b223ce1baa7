module soloist.dev/e2e/cluster/images

go 1.26.0
