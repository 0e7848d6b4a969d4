//go:build linux

// A recording shim: a fake for tests, standing where Kata's shim would be on a machine that boots virtual machines. containerd
// starts it and speaks to it as to any shim; it writes down what it was told, leaves beside the sandbox what Kata has there
// (directories, a bind mount, a process for the monitor and one for virtiofsd), and lets the runc shim's own task service run
// the container with the OCI runtime that its configuration names. No virtual machine, no Kata code.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	name = "io.containerd.kata-recording.v2"
	// Kata's shims have no other word for what they can't do.
	unimplemented = "unimplemented by the recording shim, as by Kata's"
)

// config is the file that the options name, in the place of Kata's configuration.
type config struct {
	// Runtime is the OCI runtime that runs the container.
	Runtime string `json:"runtime"`
	// Root is its --root, without the namespace.
	Root string `json:"root"`
	// Run is what /run is for Kata. A file "leave" in it: Delete leaves everything, like a shim that dies.
	Run string `json:"run"`
	// Shared is bind-mounted where Kata shares files with its guest.
	Shared string `json:"shared"`
	// Calls is the file in which every call is written down, a JSON object a line.
	Calls string `json:"calls"`
}

func (c config) record(call string, what map[string]any) {
	what["call"] = call
	line, err := json.Marshal(what)
	if err != nil {
		return
	}
	f, err := os.OpenFile(c.Calls, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	// One write: lines of several processes do not mix.
	f.Write(append(line, '\n'))
}

// places are Kata's directories of a sandbox: of the shim in Go, of runtime-rs, and of both.
func (c config) places(id string) []string {
	var all []string
	for _, place := range []string{"vc/sbs", "vc/vm", "kata", "kata-containers/shared/sandboxes"} {
		all = append(all, filepath.Join(c.Run, place, id))
	}
	return all
}

func (c config) shared(id string) string {
	return filepath.Join(c.Run, "kata-containers/shared/sandboxes", id, "shared")
}

// furnish makes what Kata has of a running sandbox.
func (c config) furnish(id string) ([]*exec.Cmd, error) {
	for _, dir := range append(c.places(id), c.shared(id)) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, "persist.json"), []byte("{}"), 0o600); err != nil {
			return nil, err
		}
	}
	if err := syscall.Mount(c.Shared, c.shared(id), "", syscall.MS_BIND, ""); err != nil {
		return nil, err
	}
	var all []*exec.Cmd
	for _, args := range [][]string{
		{"/opt/kata/bin/cloud-hypervisor", "--api-socket", filepath.Join(c.Run, "vc/vm", id, "clh-api.sock")},
		{"/opt/kata/libexec/virtiofsd", "--socket-path=" + filepath.Join(c.Run, "vc/vm", id, "vhost-fs.sock")},
	} {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := &exec.Cmd{Path: self, Args: args, SysProcAttr: &syscall.SysProcAttr{Setpgid: true}}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		go cmd.Wait()
		all = append(all, cmd)
	}
	return all, nil
}

// clear removes it again, as a Kata shim does that ends in good order.
func (c config) clear(id string, processes []*exec.Cmd) error {
	for _, cmd := range processes {
		cmd.Process.Kill()
	}
	if err := syscall.Unmount(c.shared(id), 0); err != nil {
		return err
	}
	for _, dir := range c.places(id) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func (c config) leaves() bool {
	_, err := os.Stat(filepath.Join(c.Run, "leave"))
	return err == nil
}

// service records, then asks the runc shim's.
type service struct {
	taskAPI.TTRPCTaskService
	config    config
	processes []*exec.Cmd
}

func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskAPI.RegisterTTRPCTaskService(server, s)
	return nil
}

func (s *service) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	if r.Options == nil {
		return nil, fmt.Errorf("the task came without options")
	}
	given, err := typeurl.UnmarshalAny(r.Options)
	if err != nil {
		return nil, err
	}
	kata, ok := given.(*runtimeoptions.Options)
	if !ok || kata.ConfigPath == "" {
		// Kata takes its default configuration then.
		return nil, fmt.Errorf("options of type %s name no configuration", r.Options.TypeUrl)
	}
	text, err := os.ReadFile(kata.ConfigPath)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &s.config); err != nil {
		return nil, err
	}
	spec, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	rootfs := []string{}
	for _, m := range r.Rootfs {
		rootfs = append(rootfs, m.Type)
	}
	s.config.record("create", map[string]any{
		"id": r.ID, "options_type": r.Options.TypeUrl, "config_path": kata.ConfigPath, "spec": json.RawMessage(spec),
		"rootfs": rootfs, "stdin": r.Stdin, "stdout": r.Stdout, "stderr": r.Stderr, "terminal": r.Terminal,
	})
	if s.processes, err = s.config.furnish(r.ID); err != nil {
		return nil, err
	}
	ours, err := typeurl.MarshalAnyToProto(&options.Options{BinaryName: s.config.Runtime, Root: s.config.Root})
	if err != nil {
		return nil, err
	}
	r.Options = ours
	return s.TTRPCTaskService.Create(ctx, r)
}

func (s *service) Delete(ctx context.Context, r *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	s.config.record("delete", map[string]any{"id": r.ID})
	answer, err := s.TTRPCTaskService.Delete(ctx, r)
	if err == nil && !s.config.leaves() {
		err = s.config.clear(r.ID, s.processes)
	}
	return answer, err
}

func (s *service) Kill(ctx context.Context, r *taskAPI.KillRequest) (*emptypb.Empty, error) {
	s.config.record("kill", map[string]any{"id": r.ID, "signal": r.Signal, "all": r.All})
	return s.TTRPCTaskService.Kill(ctx, r)
}

func (s *service) Pause(ctx context.Context, r *taskAPI.PauseRequest) (*emptypb.Empty, error) {
	s.config.record("pause", map[string]any{"id": r.ID})
	return nil, fmt.Errorf(unimplemented)
}

func (s *service) Checkpoint(ctx context.Context, r *taskAPI.CheckpointTaskRequest) (*emptypb.Empty, error) {
	s.config.record("checkpoint", map[string]any{"id": r.ID})
	return nil, fmt.Errorf(unimplemented)
}

func (s *service) Exec(ctx context.Context, r *taskAPI.ExecProcessRequest) (*emptypb.Empty, error) {
	s.config.record("exec", map[string]any{"id": r.ID})
	return nil, fmt.Errorf(unimplemented)
}

// bootstrap starts and stops the service, as the runc shim does.
type bootstrap struct{ shim.Shim }

// Info is asked with Kata's options, which the runc shim's does not know.
func (bootstrap) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	return &types.RuntimeInfo{Name: name, Version: &types.RuntimeVersion{Version: "recording"}}, nil
}

func main() {
	program := filepath.Base(os.Args[0])
	if !strings.HasPrefix(program, "containerd-shim") {
		// Stands for a monitor or virtiofsd, until it is killed.
		time.Sleep(time.Hour)
		return
	}
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			inner, err := task.NewTaskService(ic.Context, publisher.(shim.Publisher), sd.(shutdown.Service))
			return &service{TTRPCTaskService: inner}, err
		},
	})
	shim.RunShim(context.Background(), bootstrap{manager.NewShimManager(name)})
}
