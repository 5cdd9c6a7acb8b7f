package virtual_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"example.com/etcd/concurrency/internal/virtual"
)

func TestSame(t *testing.T) {
	f, err := os.Create(os.Getenv("TRACE"))
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	h := sha256.New()
	locks := make([]int, 6)
	virtual.Run(t, virtual.Options{Seed: 1, Trace: func(e virtual.Event) { fmt.Fprintln(w, e); fmt.Fprintln(h, e) }}, func(b *virtual.Bubble) {
		var wg sync.WaitGroup
		for i := range locks {
			wg.Go(func() { locker(b, i, 10*time.Minute, &locks[i]) })
		}
		wg.Wait()
	})
	w.Flush()
	f.Close()
	t.Logf("%x", h.Sum(nil))
}
