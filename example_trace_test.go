package concurrency_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"example.com/etcd/concurrency"
)

// logTo writes what happens to a logger. What goes well is for debugging, what is ridden out is a
// warning, and a loss is an error.
func logTo(log *slog.Logger) *concurrency.Trace {
	line := func(level slog.Level, what string) func(concurrency.LineEvent) {
		return func(e concurrency.LineEvent) {
			attrs := []slog.Attr{slog.String("name", e.Name), slog.String("key", e.Key), slog.Int64("token", e.Token)}
			if e.Ahead != "" {
				attrs = append(attrs, slog.String("ahead", e.Ahead))
			}
			if e.Waited > 0 {
				attrs = append(attrs, slog.Duration("waited", e.Waited))
			}
			if e.Held > 0 {
				attrs = append(attrs, slog.Duration("held", e.Held))
			}
			if e.Err != nil {
				attrs = append(attrs, slog.Any("err", e.Err))
			}
			log.LogAttrs(context.Background(), level, what, attrs...)
		}
	}
	return &concurrency.Trace{
		Joined:     line(slog.LevelDebug, "joined"),
		Waiting:    line(slog.LevelDebug, "waiting"),
		Acquired:   line(slog.LevelInfo, "acquired"),
		GaveUp:     line(slog.LevelInfo, "gave up"),
		Released:   line(slog.LevelInfo, "released"),
		Lost:       line(slog.LevelError, "lost"),
		LeftBehind: line(slog.LevelWarn, "left behind"),
		CleanedUp:  line(slog.LevelInfo, "cleaned up"),
		RenewalFailed: func(e concurrency.SessionEvent) {
			log.Warn("renewal failed", "lease", e.Lease, "left", e.Left, "err", e.Err)
		},
		Ended: func(e concurrency.SessionEvent) {
			log.Info("session ended", "lease", e.Lease, "err", e.Err)
		},
		Repeated: func(e concurrency.CallEvent) {
			log.Warn("call repeated", "lease", e.Lease, "err", e.Err)
		},
		Attempt: func(a concurrency.Attempt) {
			log.Debug("attempt", "number", a.Number, "keys", a.Keys, "err", a.Err)
		},
	}
}

// All that happens to a session is written to a log.
func ExampleWithTrace() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { // what is another one each time
			switch a.Key {
			case slog.TimeKey, "key", "token", "waited", "held", "lease":
				return slog.Attr{}
			}
			return a
		},
	}))
	session, err := concurrency.NewSession(client, concurrency.WithTrace(logTo(log)))
	check(err)
	mutex := concurrency.NewMutex(session, "my-lock")
	check(mutex.Lock(ctx))
	check(mutex.Unlock(ctx))
	check(mutex.Lock(ctx))
	_, err = client.Delete(ctx, mutex.Key()) // by an operator, say
	check(err)
	check(mutex.Unlock(ctx)) // finds that the lock was lost
	check(session.Close())

	// Output:
	// level=DEBUG msg=joined name=my-lock
	// level=INFO msg=acquired name=my-lock
	// level=INFO msg=released name=my-lock
	// level=DEBUG msg=joined name=my-lock
	// level=INFO msg=acquired name=my-lock
	// level=ERROR msg=lost name=my-lock err="mutex: session is expired: the key was deleted"
	// level=INFO msg="session ended" err="context canceled"
}

// metrics are what Prometheus is told of the sessions of a process. The names of locks are labels,
// so there should not be many.
type metrics struct {
	wait, hold       *prometheus.HistogramVec // seconds, by name
	acquired         *prometheus.CounterVec   // hand-overs, by name
	lost             *prometheus.CounterVec   // by name and cause
	repeated, failed prometheus.Counter       // calls that were repeated, renewals that have failed
	behind           prometheus.Gauge         // keys that are left behind
	attempts         *prometheus.CounterVec   // of transactions, by outcome

	deadline atomic.Int64 // of the session, in nanoseconds since 1970

	mu      sync.Mutex // guards the field below
	waiting map[string]bool
}

func newMetrics(registry prometheus.Registerer) *metrics {
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, []string{"name"})
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		wait:     histogram("lock_wait_seconds", "Time from the call to the lock."),
		hold:     histogram("lock_hold_seconds", "Time from the lock to its release or loss."),
		acquired: counter("lock_acquired_total", "Locks and leaderships taken.", "name"),
		lost:     counter("lock_lost_total", "Locks and leaderships lost.", "name", "cause"),
		repeated: prometheus.NewCounter(prometheus.CounterOpts{Name: "lock_calls_repeated_total", Help: "Calls sent again."}),
		failed:   prometheus.NewCounter(prometheus.CounterOpts{Name: "lock_renewals_failed_total", Help: "Renewals without an answer."}),
		behind:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "lock_keys_left_behind", Help: "Keys that nobody wants."}),
		attempts: counter("stm_attempts_total", "Attempts of transactions.", "outcome"),
		waiting:  map[string]bool{},
	}
	registry.MustRegister(m.wait, m.hold, m.acquired, m.lost, m.repeated, m.failed, m.behind, m.attempts,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "lock_session_left_seconds", Help: "Time until the session ends, if no renewal is answered.",
		}, func() float64 { return time.Until(time.Unix(0, m.deadline.Load())).Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "lock_waiting", Help: "Locks and leaderships that are waited for.",
		}, func() float64 {
			m.mu.Lock()
			defer m.mu.Unlock()
			return float64(len(m.waiting))
		}))
	return m
}

// opened notes the first deadline of a session. Renewed tells of the later ones.
func (m *metrics) opened(s *concurrency.Session) { m.deadline.Store(s.Deadline().UnixNano()) }

// waits notes whether a key is waited for.
func (m *metrics) waits(key string, waits bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if waits {
		m.waiting[key] = true
	} else {
		delete(m.waiting, key)
	}
}

func (m *metrics) trace() *concurrency.Trace {
	return &concurrency.Trace{
		Waiting: func(e concurrency.LineEvent) { m.waits(e.Key, true) },
		GaveUp:  func(e concurrency.LineEvent) { m.waits(e.Key, false) },
		Acquired: func(e concurrency.LineEvent) {
			m.waits(e.Key, false)
			m.acquired.WithLabelValues(e.Name).Inc()
			for _, label := range causes {
				m.lost.WithLabelValues(e.Name, label) // at 0, so that an alert sees the first loss
			}
			m.lost.WithLabelValues(e.Name, closed)
			m.wait.WithLabelValues(e.Name).Observe(e.Waited.Seconds())
		},
		Released: func(e concurrency.LineEvent) { m.hold.WithLabelValues(e.Name).Observe(e.Held.Seconds()) },
		Lost: func(e concurrency.LineEvent) {
			m.hold.WithLabelValues(e.Name).Observe(e.Held.Seconds())
			m.lost.WithLabelValues(e.Name, causeOf(e.Err)).Inc()
		},
		LeftBehind:    func(concurrency.LineEvent) { m.behind.Inc() },
		CleanedUp:     func(concurrency.LineEvent) { m.behind.Dec() },
		Renewed:       func(e concurrency.SessionEvent) { m.deadline.Store(time.Now().Add(e.Left).UnixNano()) },
		RenewalFailed: func(concurrency.SessionEvent) { m.failed.Inc() },
		Ended:         func(concurrency.SessionEvent) { m.behind.Set(0) }, // the keys go with the lease
		Repeated:      func(concurrency.CallEvent) { m.repeated.Inc() },
		Attempt: func(a concurrency.Attempt) {
			outcome := "failed"
			switch a.Err {
			case nil:
				outcome = "committed"
			case concurrency.ErrConflict:
				outcome = "conflict"
			case concurrency.ErrBlocked:
				outcome = "blocked"
			}
			m.attempts.WithLabelValues(outcome).Inc()
		},
	}
}

// causes are the labels of the causes of a loss. The session was closed if it is none of them.
var causes = map[error]string{
	concurrency.ErrDeadline:     "deadline",
	concurrency.ErrLeaseGone:    "lease gone",
	concurrency.ErrKeyDeleted:   "key deleted",
	concurrency.ErrClientClosed: "client closed",
}

const closed = "session closed"

// causeOf is the cause of a loss as a label.
func causeOf(err error) string {
	for cause, label := range causes {
		if errors.Is(err, cause) {
			return label
		}
	}
	return closed
}

// Prometheus is told of waits, holds, hand-overs, losses by cause, and of what is left of the
// lease. OPERATIONS.md says which alerts make sense.
func ExampleTrace_prometheus() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	registry := prometheus.NewRegistry() // promhttp.HandlerFor(registry, ...) serves it
	m := newMetrics(registry)
	session, err := concurrency.NewSession(client, concurrency.WithTTL(10), concurrency.WithTrace(m.trace()))
	check(err)
	defer session.Close()
	m.opened(session)

	mutex := concurrency.NewMutex(session, "report")
	check(mutex.Lock(ctx))
	check(mutex.Unlock(ctx))
	check(mutex.Lock(ctx))
	_, err = client.Delete(ctx, mutex.Key())
	check(err)
	check(mutex.Unlock(ctx))
	check(session.Close()) // when it has returned, all was told

	families, err := registry.Gather()
	check(err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			fmt.Print(family.GetName())
			for _, label := range metric.GetLabel() {
				fmt.Printf(" %s=%q", label.GetName(), label.GetValue())
			}
			switch {
			case metric.GetHistogram() != nil:
				fmt.Printf(" observed %d times\n", metric.GetHistogram().GetSampleCount())
			case metric.GetCounter() != nil:
				fmt.Printf(" %v\n", metric.GetCounter().GetValue())
			default: // rounded up, in tens
				fmt.Printf(" at most %v\n", 10*int(metric.GetGauge().GetValue()/10+0.99))
			}
		}
	}

	// Output:
	// lock_acquired_total name="report" 2
	// lock_calls_repeated_total 0
	// lock_hold_seconds name="report" observed 2 times
	// lock_keys_left_behind at most 0
	// lock_lost_total cause="client closed" name="report" 0
	// lock_lost_total cause="deadline" name="report" 0
	// lock_lost_total cause="key deleted" name="report" 1
	// lock_lost_total cause="lease gone" name="report" 0
	// lock_lost_total cause="session closed" name="report" 0
	// lock_renewals_failed_total 0
	// lock_session_left_seconds at most 10
	// lock_wait_seconds name="report" observed 2 times
	// lock_waiting at most 0
}

// A liveness probe of a session. A healthy session has at least two thirds of its life left,
// less a round trip, because it is renewed every third. With less than one third, two renewals in
// a row have had no answer.
func ExampleSession_Deadline() {
	client, stop := connect()
	defer stop()

	margin := 2 * time.Second
	session, err := concurrency.NewSession(client,
		concurrency.WithTTL(10), concurrency.WithSafetyMargin(margin))
	check(err)
	defer session.Close()

	probe := func(w http.ResponseWriter, _ *http.Request) {
		life := session.TTL() - margin
		left := time.Until(session.Deadline())
		switch {
		case session.Ctx().Err() != nil: // and Deadline means nothing
			http.Error(w, "ended: "+context.Cause(session.Ctx()).Error(), http.StatusServiceUnavailable)
		case left < life/3:
			http.Error(w, "about to end", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "well")
		}
	}
	ask := func() {
		answer := httptest.NewRecorder()
		probe(answer, httptest.NewRequest(http.MethodGet, "/healthz", nil))
		fmt.Print(answer.Code, " ", answer.Body)
	}
	ask()
	_, err = client.Revoke(context.Background(), session.Lease()) // by an operator, say
	check(err)
	<-session.Done() // the next renewal is refused
	ask()

	// Output:
	// 200 well
	// 503 ended: mutex: session is expired: the server does not have the lease any more
}

// A liveness probe of RunLeader, which opens sessions of its own. Their trace tells until when
// the present session lives.
func ExampleTrace_runLeader() {
	client, stop := connect()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())

	const life = 10 * time.Second
	var deadline atomic.Pointer[time.Time] // nil: no session has been renewed yet
	trace := &concurrency.Trace{
		Renewed: func(e concurrency.SessionEvent) {
			until := time.Now().Add(e.Left)
			deadline.Store(&until)
		},
		Acquired: func(e concurrency.LineEvent) { fmt.Println("leads", e.Name) },
		Released: func(e concurrency.LineEvent) { fmt.Println("has resigned") },
	}
	// Before the first renewal a session is well, because it was opened less than a third of its
	// life ago. A process that can't open any is not, and its probe should ask for the first
	// renewal after some time.
	healthy := func() bool {
		until := deadline.Load()
		return until == nil || time.Until(*until) > life/3
	}
	err := concurrency.RunLeader(ctx, client, "my-election", "me", func(context.Context, *concurrency.Election) error {
		fmt.Println("healthy:", healthy())
		cancel() // the program is to stop
		return ctx.Err()
	}, concurrency.WithTTL(int(life/time.Second)), concurrency.WithTrace(trace))
	fmt.Println(err)

	// Output:
	// leads my-election
	// healthy: true
	// has resigned
	// context canceled
}

// Each attempt of a transaction is told, and what it has conflicted over.
func ExampleWithSTMTrace() {
	client, stop := connect()
	defer stop()
	ctx := context.Background()

	trace := &concurrency.Trace{Attempt: func(a concurrency.Attempt) {
		fmt.Println("attempt", a.Number, "over", a.Keys, "->", a.Err)
	}}
	interfere := sync.OnceFunc(func() {
		_, err := client.Put(ctx, "counter", "changed by another")
		check(err)
	})
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		was := stm.Get("counter")
		interfere()
		stm.Put("counter", was+"!")
		return nil
	}, concurrency.WithSTMTrace(trace))
	check(err)

	resp, err := client.Get(ctx, "counter", clientv3.WithSerializable())
	check(err)
	fmt.Println(string(resp.Kvs[0].Value))

	// Output:
	// attempt 1 over [counter] -> concurrency: the transaction conflicts with others
	// attempt 2 over [] -> <nil>
	// changed by another!
}
