//go:build tools

// Package tools pins the helm that renders and checks daemonset/chart; hack/setup.sh builds it.
package tools

import (
	_ "helm.sh/helm/v4/cmd/helm"
)
