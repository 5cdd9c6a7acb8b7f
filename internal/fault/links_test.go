package fault_test

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"

	"example.com/etcd/concurrency/internal/etcdtest"
	"example.com/etcd/concurrency/internal/fault"
)

// echo is a TLS server that sends back what it gets.
func echo(t *testing.T) (address string) {
	t.Helper()
	cert, err := transport.SelfCert(zap.NewNop(), t.TempDir(), nil, 1)
	require.NoError(t, err)
	pair, err := tls.LoadX509KeyPair(cert.CertFile, cert.KeyFile)
	require.NoError(t, err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

// Each caller's connections have a proxy of their own, and a stranger gets none.
func TestLinks(t *testing.T) {
	l, err := fault.NewLinks(echo(t), "a", "b")
	require.NoError(t, err)
	defer l.Close()
	at := strings.TrimPrefix(l.Endpoint(), "https://")
	dial := func(name string) (*tls.Conn, error) {
		return tls.Dial("tcp", at, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	}
	says := func(conn *tls.Conn) error {
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}

	a, err := dial("a")
	require.NoError(t, err)
	defer a.Close()
	b, err := dial("b")
	require.NoError(t, err)
	defer b.Close()
	require.NoError(t, says(a))
	require.NoError(t, says(b))
	_, err = dial("c")
	require.Error(t, err)
	require.Nil(t, l.From("c"))

	l.From("a").Sever()
	require.Error(t, says(a))
	_, err = dial("a")
	require.Error(t, err)
	require.NoError(t, says(b))
	l.From("a").Heal()
	again, err := dial("a")
	require.NoError(t, err)
	defer again.Close()
	require.NoError(t, says(again))

	l.From("b").StallDown()
	said := etcdtest.Go(func() error { return says(b) })
	require.NoError(t, says(again))
	require.True(t, said.Running())
	l.From("b").Heal()
	require.NoError(t, said.Wait(t))
}

// Close does not wait for a caller who says nothing.
func TestLinksCloseOnSilence(t *testing.T) {
	l, err := fault.NewLinks(echo(t), "a")
	require.NoError(t, err)
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.Endpoint(), "https://"))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, etcdtest.Go(func() error { l.Close(); return nil }).Wait(t))
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
	l.Close()
}
