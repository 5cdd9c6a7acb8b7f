package etcdtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// process is a member that runs a binary.
type process struct {
	cmd  *exec.Cmd
	log  string        // path of what it wrote
	done chan struct{} // closed when it has ended
}

// launchProcess starts the binary for member i.
func (c *Cluster) launchProcess(i int) (server, error) {
	m := c.members[i]
	heartbeat, election := c.timing()
	args := []string{
		"--name=" + m.name,
		"--data-dir=" + m.dir,
		"--listen-client-urls=" + m.client,
		"--advertise-client-urls=" + m.client,
		"--listen-peer-urls=" + m.listen,
		"--initial-advertise-peer-urls=" + m.peer,
		"--initial-cluster=" + c.initialCluster(),
		"--heartbeat-interval=" + strconv.Itoa(int(heartbeat)),
		"--election-timeout=" + strconv.Itoa(int(election)),
		"--logger=zap",
		"--log-level=warn",
	}
	if !c.fsync && c.knows("--unsafe-no-fsync") {
		args = append(args, "--unsafe-no-fsync")
	}
	p := &process{log: filepath.Join(c.dir, m.name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own
	p.cmd = exec.Command(c.binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	DieWithParent(p.cmd)
	return p, p.run()
}

// knows asks the binary for its help and looks for a flag there.
func (c *Cluster) knows(flag string) bool {
	help, err := exec.Command(c.binary, "--help").CombinedOutput()
	return err == nil && bytes.Contains(help, []byte(flag))
}

// run starts the command and collects it when it ends. The kernel counts the
// thread that started a process as its parent, so one thread does both.
func (p *process) run() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait()
			close(p.done)
		}
	}()
	return <-started
}

// stop kills the process. What it has written is in the system's hands and
// outlives it.
func (p *process) stop() {
	p.cmd.Process.Kill()
	<-p.done
}

// exited is the reason why the process ended, nil while it runs.
func (p *process) exited() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	log, _ := os.ReadFile(p.log)
	if strings.Contains(string(log), syscall.EADDRINUSE.Error()) {
		return fmt.Errorf("%s: %w", p.cmd.Path, syscall.EADDRINUSE)
	}
	return fmt.Errorf("%s: %s\n%s", p.cmd.Path, p.cmd.ProcessState, log)
}
