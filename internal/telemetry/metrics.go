package telemetry

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/berth-dev/berth/internal/event"
)

// Metrics counts what the event log tells. Observe may be called from one
// goroutine at a time; Handler from any.
type Metrics struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	calls    *prometheus.HistogramVec
	errors   *prometheus.CounterVec
}

// Gauge is a value that is read when somebody asks for the metrics.
type Gauge struct {
	Name string // without the prefix "berth_"
	Help string
	Read func() float64 // safe for concurrent use
}

// GaugeSet is a family of values that are read when somebody asks for the
// metrics; the label tells them apart.
type GaugeSet struct {
	Name  string // without the prefix "berth_"
	Help  string
	Label string
	Read  func() map[string]float64 // safe for concurrent use; a small, known set of keys
}

// Describe implements prometheus.Collector.
func (g GaugeSet) Describe(ch chan<- *prometheus.Desc) { ch <- g.desc() }

// Collect implements prometheus.Collector.
func (g GaugeSet) Collect(ch chan<- prometheus.Metric) {
	for value, v := range g.Read() {
		ch <- prometheus.MustNewConstMetric(g.desc(), prometheus.GaugeValue, v, value)
	}
}

func (g GaugeSet) desc() *prometheus.Desc {
	return prometheus.NewDesc("berth_"+g.Name, g.Help, []string{g.Label}, nil)
}

// NewMetrics returns metrics with these gauges beside the counters.
func NewMetrics(version string, gauges ...Gauge) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_events_total", Help: "Entries of the event log, by type.",
		}, []string{"type"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_call_seconds", Help: "How long tool calls ran, by tool.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 120, 600},
		}, []string{"tool"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_call_errors_total", Help: "Tool calls whose result is an error, by tool.",
		}, []string{"tool"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "berth_build_info", Help: "Always 1; the label is the version.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.events, m.calls, m.errors, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, g := range gauges {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "berth_" + g.Name, Help: g.Help}, g.Read))
	}
	return m
}

// Add adds families of gauges. Their names must be new.
func (m *Metrics) Add(sets ...GaugeSet) {
	for _, g := range sets {
		m.registry.MustRegister(g)
	}
}

// Observe counts one entry of the event log.
func (m *Metrics) Observe(e event.Event) {
	m.events.WithLabelValues(string(e.Type)).Inc()
	if e.Type != event.CallFinished {
		return
	}
	var d struct {
		Name    string `json:"name"`
		MS      int64  `json:"ms"`
		IsError bool   `json:"is_error"`
	}
	if json.Unmarshal(e.Data, &d) != nil {
		return
	}
	// Only owned calls finish here, so the names are a small, known set.
	m.calls.WithLabelValues(d.Name).Observe(float64(d.MS) / 1000)
	if d.IsError {
		m.errors.WithLabelValues(d.Name).Inc()
	}
}

// Handler serves the metrics in the Prometheus text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
