//go:build kafka && unix

package apache

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serves reports whether something listens at addr.
func serves(addr string) bool {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// answers reports whether the broker at addr answers within d.
func answers(t *testing.T, addr string, d time.Duration) bool {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 255, 255}) // ApiVersions
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(d)))
	_, err = io.ReadFull(conn, make([]byte, 8))
	return err == nil
}

func TestOwnKafkaNodes(t *testing.T) {
	c, err := Start(t.Context(), t.TempDir(), Options{Nodes: 3, Secure: true})
	require.NoError(t, err)
	defer c.Close()
	listeners := [][]string{c.Brokers(), c.SASL(), c.TLS(), c.SASLTLS()}
	for _, l := range listeners {
		require.Len(t, l, 3)
		for _, addr := range l {
			require.True(t, serves(addr))
		}
	}
	addr := c.Brokers()[0]
	for name, end := range map[string]func(int) error{"stop": c.Stop, "kill": c.Kill} {
		require.NoError(t, end(0), name)
		require.False(t, serves(addr), name)
		require.EqualError(t, end(0), "apache: node 1 is not running", name)
		require.NoError(t, c.Restart(0), name)
		require.True(t, answers(t, addr, time.Minute), name)
		require.EqualError(t, c.Restart(0), "apache: node 1 is running", name)
	}
	require.NoError(t, c.Pause(0))
	require.False(t, answers(t, addr, 300*time.Millisecond))
	require.NoError(t, c.Resume(0))
	require.True(t, answers(t, addr, time.Minute))
	require.NoError(t, c.Pause(2))
	require.NoError(t, c.Close(), "a paused node too")
	for _, l := range listeners {
		for _, addr := range l {
			require.False(t, serves(addr))
		}
	}
	require.NoError(t, c.Close())
}
