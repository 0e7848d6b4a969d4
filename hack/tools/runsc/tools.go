//go:build tools

// Package tools pins gVisor's runsc; hack/setup.sh builds it. It has a module of its own because
// containerd needs a newer runtime-spec than this gVisor compiles with.
package tools

import _ "gvisor.dev/gvisor/runsc"
